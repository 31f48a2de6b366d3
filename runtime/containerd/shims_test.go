//go:build linux

package containerd

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// pool returns a pool whose shims start and answer at once.
func pool(share, ahead int) *shimPool {
	return &shimPool{share: share, ahead: ahead, shims: map[string]*shim{}, groups: map[string]*shim{}}
}

// place does what acquire decides.
func (p *shimPool) place(group string) *shim {
	s := p.groups[group]
	if s == nil || !s.takes() {
		if s = p.roomLocked(); s == nil {
			s = newShim(fmt.Sprint("shim", len(p.shims)))
			close(s.ready)
			p.shims[s.id] = s
		}
	}
	p.useLocked(s, group)
	return s
}

// However many groups come, no shim has more groups than it
// may, no more shims are made than are needed, and the first groups are spread
// evenly.
func TestShimsAreShared(t *testing.T) {
	for _, groups := range []int{1, 3, 4, 5, 32, 33, 50, 400} {
		for _, share := range []int{1, 8} {
			p := pool(share, 1)
			for i := range groups {
				p.place(fmt.Sprint("g", i))
			}
			if got, want := len(p.shims), wantedShims(groups, share); got != want {
				t.Errorf("%d groups, %d to a shim: got %d shims, want %d", groups, share, got, want)
			}
			for _, s := range p.shims {
				most := share
				if groups <= spread*share {
					most = (groups + len(p.shims) - 1) / len(p.shims)
				}
				if n := len(s.groups); n > most {
					t.Errorf("%d groups, %d to a shim: one has %d, want at most %d", groups, share, n, most)
				}
			}
		}
	}
}

func TestWantedShims(t *testing.T) {
	for groups, want := range map[int]int{0: 0, 1: 1, 3: 3, 4: 4, 5: 4, 32: 4, 33: 5, 50: 7, 80: 10} {
		if got := wantedShims(groups, 8); got != want {
			t.Errorf("%d groups, 8 to a shim: got %d shims, want %d", groups, got, want)
		}
	}
}

// A group stays with its shim as long as that lives, and all of it goes to one
// other shim when it has died.
func TestGroupStaysTogether(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	p := pool(8, 1)
	for range 500 {
		group := fmt.Sprint("g", random.IntN(40))
		before := p.groups[group]
		s := p.place(group)
		switch {
		case before != nil && before.takes() && s != before:
			t.Fatalf("%s is with %s: got %s for its next container", group, before.id, s.id)
		case !s.takes():
			t.Fatalf("%s got a shim that is dead or does not answer", group)
		case len(s.groups) > p.share:
			t.Fatalf("%s has %d groups, want at most %d", s.id, len(s.groups), p.share)
		}
		switch random.IntN(20) {
		case 0:
			close(s.closed)
		case 1:
			s.unfit = true
		}
	}
}
