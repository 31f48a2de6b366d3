package orchestrate_test

import (
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

func TestWithLossLimitRefuses(t *testing.T) {
	s := memory.New(memory.Options{})
	defer s.Close()
	for limit, want := range map[orchestrate.Amount]string{
		"": "", "10%": "", "1": "", "100%": "", // empty is the default
		"0": "want 1 or more", "0%": "want 1 or more", "101%": "more than 100%", "many": "neither", "-1": "neither",
	} {
		f, err := orchestrate.New(s, orchestrate.WithLossLimit(limit))
		switch {
		case want == "" && err != nil:
			t.Errorf("New with a loss limit of %q: %v", limit, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("New with a loss limit of %q: %v, want an error that says %q", limit, err, want)
		}
		if err == nil {
			f.Close()
		}
	}
}
