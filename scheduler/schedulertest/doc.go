// Package schedulertest checks what decides where tasks run: a strategy, a
// whole [scheduler.Placer], or something else altogether that has a Place
// method like [scheduler.Scheduler]'s.
//
//	func TestCheapest(t *testing.T) {
//		schedulertest.Run(t, schedulertest.Harness{
//			Strategy: "cheapest",
//			New: func(seed uint64) (schedulertest.Placer, error) {
//				return scheduler.New(scheduler.Options{Seed: seed, Strategies: []scheduler.Strategy{cheapest}})
//			},
//		})
//	}
//
// [Check] judges one outcome by the rules alone, with none of the scheduler's
// own machinery: it looks at each task that was placed and asks of each rule
// whether it holds. [Test] does that for many random clusters and requests,
// which [Generate] makes, and also asks for
//
//   - determinism: the same input gives the same outcome, whatever the order
//     in which the cluster was built;
//   - conservation: binding and releasing leaves nothing behind;
//   - monotonicity: one more node, or one rule less, never places fewer;
//   - agreement: a cluster kept by deltas decides like one built anew;
//   - refusal: bad requests give an error and change nothing.
package schedulertest
