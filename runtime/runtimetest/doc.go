// Package runtimetest is the specification of runtime.Runtime as tests: every
// driver runs [Test] against itself.
//
//	func TestConformance(t *testing.T) {
//		runtimetest.Test(t, runtimetest.Harness{
//			Open: func(ctx context.Context) (runtime.Runtime, func() error, error) {
//				rt, err := mydriver.Open(…)
//				return rt, rt.Close, err
//			},
//			Image: "orchestrate.test/program:1",
//		})
//	}
//
// The containers that it starts run [Program], which a driver for real
// containers builds from the main package in testdata/program. What a driver
// can do beyond runtime.Runtime is found by type assertion, and tested when it
// is there. [Check] runs the same cases without package testing; the tests of
// this package use it to show that the suite catches wrong drivers.
package runtimetest
