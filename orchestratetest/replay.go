package orchestratetest

import (
	"io"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cron"
)

// Replay decides again by a log that [orchestrate.WithRecorder] has written, of a
// simulated fleet or of a real one: with the current code, or with another strategy
// in opts. Schedules of cron jobs are read by package cron, unless opts have another
// parser.
//
// It is open-loop: each decision is made in the fleet as it was, whatever was decided
// here before, and what would have followed is estimated; see [orchestrate.Replay].
// To see what follows, simulate: give another strategy to a [Scenario].
func Replay(log io.Reader, opts ...orchestrate.Option) (*orchestrate.Replayed, error) {
	return orchestrate.Replay(log, append([]orchestrate.Option{orchestrate.WithSchedules(cron.Parse)}, opts...)...)
}
