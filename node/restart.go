package node

import (
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// verdict is what is to be done about a container that ended.
type verdict int

const (
	restart verdict = iota // start it again after a delay
	done                   // it ended as it should
	giveUp                 // the task has failed
)

// backoff counts the restarts of one container. Its zero value has none.
type backoff struct {
	failures int // in a row: without a run of policy.Reset in between
}

// next decides about a container that ended after having run for ran. The
// policy has its defaults filled in. Deciding is pure, so that each path of it
// is a line of a table test.
func (b *backoff) next(policy orchestrate.RestartPolicy, exit runtime.Exit, unhealthy bool, ran time.Duration) (verdict, time.Duration) {
	succeeded := exit.Code == 0 && !exit.OOMKilled && !unhealthy
	switch policy.Condition {
	case orchestrate.RestartNever:
		if succeeded {
			return done, 0
		}
		return giveUp, 0
	case orchestrate.RestartOnFailure:
		if succeeded {
			return done, 0
		}
	}
	return b.again(policy, ran)
}

// again decides about the next attempt at anything that failed after ran.
func (b *backoff) again(policy orchestrate.RestartPolicy, ran time.Duration) (verdict, time.Duration) {
	if ran >= policy.Reset {
		b.failures = 0
	}
	if policy.Attempts >= 0 && b.failures >= policy.Attempts {
		return giveUp, 0
	}
	delay := delayAfter(b.failures, policy.Backoff, policy.MaxBackoff)
	b.failures++
	return restart, delay
}

// delayAfter is 0 for the first failure, then base, doubled for each further
// one up to limit.
func delayAfter(failures int, base, limit time.Duration) time.Duration {
	if failures == 0 {
		return 0
	}
	delay := base
	for range failures - 1 {
		if delay >= limit/2 {
			return limit
		}
		delay *= 2
	}
	return min(delay, limit)
}
