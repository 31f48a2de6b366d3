package orchestratetest

import (
	"io"

	"github.com/orchestrate-go/orchestrate"
)

// Replay decides again by a log that [orchestrate.WithRecorder] has written, of a
// simulated fleet or of a real one: with the current code, or with another strategy
// in opts. See [orchestrate.Replay].
func Replay(log io.Reader, opts ...orchestrate.Option) (*orchestrate.Replayed, error) {
	return orchestrate.Replay(log, opts...)
}
