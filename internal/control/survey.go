package control

import (
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// view is all that deciding about one service looks at, and what comes out of
// it. Nothing it points at is changed, except what it owns.
type view struct {
	work    *Workload // of the spec, or of the revision that is gone back to
	spec    int64     // store revision of the service's record
	created time.Time
	tasks   []*task // by slot, then ID
	// last is the last completed revision, if it differs from the spec's; nil in
	// a rollback.
	last      *Workload
	directive *record.Directive
	blocked   *blocked
	// unmet is what the revision waits for, and cleared that it waits no more.
	unmet   []record.Unmet
	cleared bool
	now     time.Time

	global, globalBack *global   // of work, and of last, where they are global
	base               *Workload // that slots below the partition have
	volumes            []*slotVolume
	epoch              int64  // of the tasks that are started, if their slots have one
	stuck              string // why a slot waits that is not for want of room

	rollout *record.Rollout // as it was, then as it is to be
	slots   []slot
	told    map[*task]bool // who is in stops
	started map[int]bool   // which slots are in starts
	// adopt has a task take what one of work takes, if there is room.
	adopt func(*task) bool
	// rehearsed says that nobody answers for a node; see fetched.
	rehearsed bool
	// anyTemplate makes tasks of every template as good as wanted.
	anyTemplate bool
	// calm is how many more tasks there are that need no look, and all is those
	// too; see leaveCalm.
	calm int
	all  []*task
	// whole is the view that this one is a set of, in a trial; see split. Trial
	// says that it is the set that is tried.
	whole *view
	trial bool
	steps
}

// steps are what is to be done.
type steps struct {
	starts  []start
	stops   []stop
	fenced  []*task   // that have stopped without saying so; see fence
	removes []*task   // whose records are to be deleted
	failed  []*task   // that were counted as failures
	resizes []*task   // that are changed in place
	fetches []*task   // whose agents are asked for what comes after them
	wake    time.Time // when to look again, if nothing happens; zero is never
}

// start asks for a new task in a slot.
type start struct {
	slot  int
	from  *task  // the task that it is a copy of; nil: as the spec says
	avoid string // a node that it should not go to
	node  string // the only node where it can go
	fresh bool   // and there is nothing of the service there
	reach []scheduler.Volume
	work  *Workload // that it is of, when that is not the view's
}

// stop tells a task to stop.
type stop struct {
	task   *task
	reason string
}

func (s *steps) wakeAt(at time.Time) {
	if s.wake.IsZero() || at.Before(s.wake) {
		s.wake = at
	}
}

// slot is one replica: the tasks that are, were or will be it.
type slot struct {
	number int
	tasks  []*task
	// current is the best of the live tasks that are as wanted; nil if there
	// is none. Others of the kind are duplicates.
	current   *task
	settled   bool // current is
	available int  // live tasks that serve
	live      int
	outdated  int // live, and to be replaced: of another template, or on a node that is leaving
	ending    int // neither live, nor over, nor lost
	lost      int // and not over
	dropped   bool
}

// wanted reports whether a live task is as the spec wants it.
func (v *view) wanted(t *task) bool {
	if v.global != nil && v.global.node[t.rec.Slot] != t.node.id || v.work.Stateful != nil && !t.rec.Fenced() {
		return false
	}
	if t.refused() && !v.anyTemplate {
		return false
	}
	return (v.anyTemplate && !v.held(t) || t.rec.Hash == v.work.Hash || v.spared(t.rec.Slot)) && !t.leaving()
}

// outdated reports whether t is live and to be replaced.
func (v *view) outdated(t *task) bool { return t.live() && !v.wanted(t) }

// survey sorts the tasks into slots.
func (v *view) survey() {
	v.slots = v.slots[:0]
	for first := 0; first < len(v.tasks); {
		end := first + 1
		for end < len(v.tasks) && v.tasks[end].rec.Slot == v.tasks[first].rec.Slot {
			end++
		}
		s := slot{number: v.tasks[first].rec.Slot, tasks: v.tasks[first:end]}
		for _, t := range s.tasks {
			switch {
			case t.over():
			case t.lost():
				s.lost++
			case !t.live():
				s.ending++
			default:
				s.live++
				if v.serves(t) {
					s.available++
				}
				if !v.wanted(t) {
					s.outdated++
				} else if s.current == nil || v.better(t, s.current) {
					s.current = t
				}
			}
		}
		s.settled = s.current != nil && v.settles(s.current)
		v.slots = append(v.slots, s)
		first = end
	}
}

// settles reports whether t has settled, and has the view looked at again when
// it will have.
func (v *view) settles(t *task) bool {
	if t.settled(v.work.Update.Monitor, v.now) {
		return true
	}
	if t.available() && t.inForce() {
		v.wakeAt(t.since.Add(v.work.Update.Monitor))
	}
	return false
}

// better orders live tasks of one slot by which of them to keep: the one that
// has served longest, else the one that is likeliest to.
func (v *view) better(a, b *task) bool {
	if v.serves(a) != v.serves(b) {
		return v.serves(a)
	}
	if v.serves(a) && v.work.KeepOriginal {
		return original(a, b)
	}
	if a.available() && b.available() && !a.since.Equal(b.since) {
		return a.since.Before(b.since)
	}
	if everReady(a) != everReady(b) {
		return everReady(a)
	}
	return original(a, b)
}

func everReady(t *task) bool { return t.status != nil && !t.status.Ready.IsZero() }

// slot returns the slot of that number, or nil when it has no tasks.
func (v *view) slot(number int) *slot {
	lo, hi := 0, len(v.slots)
	for lo < hi {
		if mid := (lo + hi) / 2; v.slots[mid].number < number {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(v.slots) && v.slots[lo].number == number {
		return &v.slots[lo]
	}
	return nil
}

// standing is how far the spec is true.
type standing struct {
	ready   int // slots whose current task serves
	settled int // slots whose current task has settled
	rest    int // tasks that have to go, and have not; those of lost nodes, which nobody can ask, aside
}

func (v *view) standing() standing {
	var st standing
	currents, tasks := v.calm, v.calm
	st.ready, st.settled = v.calm, v.calm
	for i := range v.slots {
		s := &v.slots[i]
		tasks += len(s.tasks) - s.lost
		if s.current == nil {
			continue
		}
		currents++
		if s.current.available() {
			st.ready++
		}
		if s.settled {
			st.settled++
		}
	}
	n := v.work.Replicas
	st.rest = tasks - min(currents, n) + v.doomed()
	st.ready, st.settled = min(st.ready, n), min(st.settled, n)
	return st
}

// score grows as the spec becomes true; see record.Rollout.
func (st standing) score() int { return st.ready + st.settled - st.rest }
