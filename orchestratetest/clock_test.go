package orchestratetest

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestClocksAreReadAsTheyWrite has a wrong clock's owner find what it has written, so
// that it does not write it again, however the clock runs.
func TestClocksAreReadAsTheyWrite(t *testing.T) {
	began := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		var c clock
		for range 1 + rng.IntN(3) {
			c = append(c, &drift{
				by: time.Duration(rng.Int64N(int64(time.Hour))) - 30*time.Minute, ppm: rng.Int64N(2*maxRate/3-1) - maxRate/3 + 1,
				since: began.Add(time.Duration(rng.Int64N(int64(7 * 24 * time.Hour)))),
			})
		}
		at := began.Add(time.Duration(rng.Int64N(int64(14 * 24 * time.Hour))))
		told := c.tells(at)
		meant := c.means(told)
		if again := c.tells(meant); !again.Equal(told) {
			t.Fatalf("%v is written as %v, read as %v and written as %v", at, told, meant, again)
		}
		if d := meant.Sub(at).Abs(); d > 1 {
			t.Errorf("%v is read as %v, %v off", at, meant, d)
		}
		if later := c.tells(at.Add(time.Millisecond)); !later.After(told) {
			t.Errorf("a clock goes from %v to %v in a millisecond", told, later)
		}
		foreign := c.means(at) // that this clock may never show
		if twice := c.means(c.tells(foreign)); !twice.Equal(foreign) {
			t.Errorf("%v is read as %v, and then as %v", at, foreign, twice)
		}
	}
	hour := clock{{ppm: 10_000, since: began}}
	if got := hour.ahead(began.Add(time.Hour)); got != 36*time.Second {
		t.Errorf("a clock that runs fast by a hundredth is ahead by %v after an hour, want 36s", got)
	}
	if got := hour.ahead(began.Add(-time.Hour)); got != 0 {
		t.Errorf("it was ahead by %v before that", got)
	}
}
