package cron_test

import (
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/cron"
)

// FuzzParse reads expressions. One that can be read goes forward in time, and says
// the same each time it is asked.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"* * * * *", "30 2 * * *", "0 0 31 2 *", "*/7 1-23/2 1,15 jan-dec mon-fri", "@daily", "@every 90m", "@every -1s", "@every 0s", "@every 1ns",
		"60 * * * *", "* * * * * *", "TZ=UTC * * * * *", "0 0 ? * ?", "*/0 * * * *", "9-1 * * * *", "@", "",
	} {
		f.Add(seed, int64(0), "Europe/Berlin")
		f.Add(seed, int64(972_000_000), "America/Sao_Paulo")
	}
	f.Fuzz(func(t *testing.T, expression string, from int64, zone string) {
		z, err := time.LoadLocation(zone)
		if err != nil || from < 0 || from > 1<<33 {
			return
		}
		next, err := cron.Parse(expression, z)
		if err != nil {
			return
		}
		at := time.Unix(from, 0)
		for range 20 {
			after := next(at)
			if again := next(at); !again.Equal(after) {
				t.Fatalf("%q after %v is %v, and then %v", expression, at, after, again)
			}
			if after.IsZero() {
				return
			}
			if !after.After(at) {
				t.Fatalf("%q after %v is %v, which is not after it", expression, at, after)
			}
			at = after
		}
	})
}
