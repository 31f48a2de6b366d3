package control_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
)

// braked is a fleet of n nodes with one task on each, under a limit.
func braked(t *testing.T, n int, limit control.Amount) *sim {
	s := newSim(t)
	s.limit = limit
	for i := range n {
		s.play(fmt.Sprint("node n", i))
	}
	s.lead() // with the limit
	s.play(fmt.Sprintf("apply web replicas=%d image=v1 monitor=1s", n))
	s.play("ready web.*")
	s.pass(5 * time.Second)
	s.log = nil
	return s
}

// count is how many lines of the log begin with what.
func (s *sim) count(what string) (n int) {
	for _, line := range s.log {
		if strings.HasPrefix(line, what) {
			n++
		}
	}
	return n
}

// TestBrake has half of twenty nodes vanish at once: a tenth of all is given up
// each minute, and none that returns.
func TestBrake(t *testing.T) {
	s := braked(t, 20, -10)
	for i := range 10 {
		s.play(fmt.Sprint("silent n", i))
	}
	s.pass(29 * time.Second)
	if lost := s.count("node-lost"); lost != 0 {
		t.Fatalf("%d lost after 29 s, want none before LostAfter", lost)
	}
	s.pass(2 * time.Second)
	if lost, held := s.count("node-lost"), s.count("node-held"); lost != 2 || held != 8 {
		t.Fatalf("%d lost and %d held, want 2 and 8:\n%s", lost, held, strings.Join(s.log, "\n"))
	}
	s.pass(time.Minute)
	if lost, held := s.count("node-lost"), s.count("node-held"); lost != 4 || held != 8 {
		t.Fatalf("%d lost and %d held after another minute, want 4, and each of 8 told of once", lost, held)
	}
	for i := range 10 {
		s.play(fmt.Sprint("returns n", i))
	}
	s.pass(10 * time.Minute)
	if lost, returned := s.count("node-lost"), s.count("node-returned"); lost != 4 || returned != 4 {
		t.Errorf("%d lost and %d returned, want 4 that were given up and no more", lost, returned)
	}
}

// TestBrakeLetsOneGo has the smallest fleets: a single node is given up in time,
// a record that was deleted is no matter of the brake, and no limit is none.
func TestBrakeLetsOneGo(t *testing.T) {
	s := braked(t, 3, -10)
	s.play("silent n0")
	s.play("silent n1")
	s.play("silent n2")
	s.pass(30 * time.Second)
	if lost := s.count("node-lost"); lost != 1 {
		t.Errorf("%d of 3 lost, want 1", lost)
	}
	for i := range 3 {
		s.play(fmt.Sprint("deleted n", i))
	}
	if deleted := s.count("node-lost"); deleted < 3 {
		t.Errorf("%d lost after all records were deleted, want all", deleted)
	}
	for _, limit := range []control.Amount{0, -100, 3} {
		s := braked(t, 3, limit)
		for i := range 3 {
			s.play(fmt.Sprint("silent n", i))
		}
		s.pass(30 * time.Second)
		if lost, held := s.count("node-lost"), s.count("node-held"); lost != 3 || held != 0 {
			t.Errorf("limit %d: %d of 3 lost and %d held, want 3 and none", limit, lost, held)
		}
	}
}

// TestBrakeAndLeaders has a new leader, who does not give up again what was
// given up, and waits before it gives up more.
func TestBrakeAndLeaders(t *testing.T) {
	s := braked(t, 20, -10)
	for i := range 10 {
		s.play(fmt.Sprint("silent n", i))
	}
	s.pass(31 * time.Second)
	s.lead()
	s.pass(29 * time.Second)
	if lost := s.count("node-lost"); lost != 2 {
		t.Errorf("%d lost before the new leader has waited, want the 2 of the first", lost)
	}
	s.pass(2 * time.Second)
	if lost := s.count("node-lost"); lost != 4 {
		t.Errorf("%d lost once it has, want 2 more", lost)
	}
}

// TestBrakeBound lets nodes come and go at random: in no minute are more given
// up than the limit allows.
func TestBrakeBound(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	const n, limit = 30, 3
	s := braked(t, n, -10)
	var given []time.Time
	seen := 0
	alive := map[int]bool{}
	for i := range n {
		alive[i] = true
	}
	for range 3000 {
		if i := random.IntN(n); random.IntN(20) == 0 {
			verb := "silent"
			if !alive[i] {
				verb = "returns"
			}
			alive[i] = !alive[i]
			s.play(fmt.Sprintf("%s n%d", verb, i))
		}
		s.pass(time.Second)
		for lost := s.count("node-lost"); seen < lost; seen++ {
			given = append(given, s.now)
			if k := len(given) - 1 - limit; k >= 0 && s.now.Sub(given[k]) < 59*time.Second {
				t.Fatalf("%d nodes given up within %v, want at most %d a minute", limit+1, s.now.Sub(given[k]), limit)
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d nodes were given up: this shows nothing", seen)
	}
}
