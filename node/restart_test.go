package node

import (
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
	"pgregory.net/rapid"
)

func policy(change func(*orchestrate.RestartPolicy)) orchestrate.RestartPolicy {
	p := orchestrate.Service{Template: orchestrate.Template{Containers: []orchestrate.Container{{}}}}.WithDefaults().Restart
	if change != nil {
		change(&p)
	}
	return p
}

func TestBackoff(t *testing.T) {
	onFailure := func(p *orchestrate.RestartPolicy) { p.Condition = orchestrate.RestartOnFailure }
	never := func(p *orchestrate.RestartPolicy) { p.Condition = orchestrate.RestartNever }
	two := func(p *orchestrate.RestartPolicy) { p.Attempts = 2 }
	failed, ok := runtime.Exit{Code: 1}, runtime.Exit{}
	for name, tc := range map[string]struct {
		change    func(*orchestrate.RestartPolicy)
		before    int // failures before
		exit      runtime.Exit
		unhealthy bool
		ran       time.Duration
		want      verdict
		delay     time.Duration
	}{
		"the first restart is at once":                     {exit: failed, want: restart},
		"the second waits for the back-off":                {before: 1, exit: failed, want: restart, delay: 100 * time.Millisecond},
		"the third waits twice as long":                    {before: 2, exit: failed, want: restart, delay: 200 * time.Millisecond},
		"the tenth is the last":                            {before: 9, exit: failed, want: restart, delay: 25600 * time.Millisecond},
		"then it gives up":                                 {before: 10, exit: failed, want: giveUp},
		"a long run forgives":                              {before: 10, exit: failed, ran: 10 * time.Minute, want: restart},
		"a run that is not long enough does not":           {before: 10, exit: failed, ran: 10*time.Minute - 1, want: giveUp},
		"success is restarted too, by default":             {exit: ok, want: restart},
		"on-failure ends with success":                     {change: onFailure, exit: ok, want: done},
		"on-failure restarts what failed":                  {change: onFailure, exit: failed, want: restart},
		"on-failure restarts what was ill":                 {change: onFailure, exit: ok, unhealthy: true, want: restart},
		"on-failure restarts what was out of memory":       {change: onFailure, exit: runtime.Exit{OOMKilled: true}, want: restart},
		"never ends with success":                          {change: never, exit: ok, want: done},
		"never gives up what failed":                       {change: never, exit: failed, want: giveUp},
		"the number of attempts counts":                    {change: two, before: 2, exit: failed, want: giveUp},
		"without end, the delay is capped":                 {change: func(p *orchestrate.RestartPolicy) { p.Attempts = -1 }, before: 60, exit: failed, want: restart, delay: 5 * time.Minute},
		"a cap that is no power of two times the back-off": {change: func(p *orchestrate.RestartPolicy) { p.MaxBackoff = 300 * time.Millisecond }, before: 3, exit: failed, want: restart, delay: 300 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			b := backoff{failures: tc.before}
			got, delay := b.next(policy(tc.change), tc.exit, tc.unhealthy, tc.ran)
			if got != tc.want || delay != tc.delay {
				t.Errorf("verdict %d after %v, want %d after %v", got, delay, tc.want, tc.delay)
			}
		})
	}
}

// A container that always fails at once is restarted exactly Attempts times,
// with delays that never fall and never pass the cap.
func TestBackoffAlwaysEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := orchestrate.RestartPolicy{
			Condition:  orchestrate.RestartAlways,
			Attempts:   rapid.IntRange(1, 200).Draw(t, "attempts"),
			Backoff:    time.Duration(rapid.Int64Range(1, int64(time.Hour)).Draw(t, "backoff")),
			MaxBackoff: time.Duration(rapid.Int64Range(1, int64(24*time.Hour)).Draw(t, "max")),
			Reset:      time.Minute,
		}
		var b backoff
		last, restarts := time.Duration(0), 0
		for {
			v, delay := b.next(p, runtime.Exit{Code: 1}, false, time.Second)
			if v == giveUp {
				break
			}
			if restarts++; restarts > p.Attempts {
				t.Fatalf("restart %d of at most %d", restarts, p.Attempts)
			}
			if delay < last || delay > p.MaxBackoff {
				t.Fatalf("delay %v after %v, want it not to fall and at most %v", delay, last, p.MaxBackoff)
			}
			last = delay
		}
		if restarts != p.Attempts {
			t.Fatalf("%d restarts, want %d", restarts, p.Attempts)
		}
	})
}
