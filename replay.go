package orchestrate

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// LogError is a log that cannot be read: the line, from 1, and why.
type LogError struct {
	Line   int
	Reason string
}

func (e *LogError) Error() string { return fmt.Sprintf("replay: line %d: %s", e.Line, e.Reason) }

// The bounds of what Replay reads.
const maxLogLine = 256 << 20

// Replay decides again by a log that [WithRecorder] has written, with the
// scheduler and the other options that are given, in a time that has nothing to do
// with that of the log: where tasks of services and of jobs are placed, and when cron
// jobs start and remove runs.
//
// It is open-loop: what is decided here changes nothing of what comes next in the
// log. At each moment it sees the fleet as it was, so it says of each decision what it
// would have been then, and not what would have followed from another. That it
// estimates, as a [Cost]: a task counts as on the node where it would have been placed
// for as long as it was there. A task that would not have failed elsewhere still
// fails, and a run that would not have been started is still there the next time.
//
// A log with cron jobs takes [WithSchedules]; without, the error is [ErrNoSchedules].
// One that ends in the middle of a line, as that of a program that crashed does, is
// read up to there. Other errors are a [*LogError] or the reader's.
func Replay(log io.Reader, opts ...Option) (*Replayed, error) {
	f, err := New(nowhere{}, opts...)
	if err != nil {
		return nil, err
	}
	p := &replay{config: f.plannerConfig(), out: new(Replayed)}
	in := bufio.NewReaderSize(log, 1<<16)
	for line := 1; ; line++ {
		text, err := readLine(in)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if errors.Is(err, errLongLine) {
				err = &LogError{line, err.Error()}
			}
			return nil, err
		}
		var e entry
		if err := json.Unmarshal(text, &e); err != nil {
			return nil, &LogError{line, "is no entry of a log: " + err.Error()}
		}
		if e.Look != nil {
			if err := p.look(f, &e); err != nil {
				return nil, err
			}
			continue
		}
		if err := p.read(&e); err != nil {
			return nil, &LogError{line, err.Error()}
		}
	}
	if p.state == nil {
		return nil, &LogError{1, "the log is empty"}
	}
	return p.end(), nil
}

var errLongLine = fmt.Errorf("it is longer than %d bytes", maxLogLine)

// readLine reads a whole line. One without an end is none.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		if len(line)+len(part) > maxLogLine {
			return nil, errLongLine
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		return line, err
	}
}

// nowhere is the store of a fleet that only decides.
type nowhere struct{ store.Store }

// replay plays a log.
type replay struct {
	config   control.Config
	state    *control.State
	before   *control.State    // the last plan, which the log has yet to agree with; else nil
	since    []stamped         // what came after it
	expected map[string]string // tasks that it placed and that have yet to come, with their nodes
	now      time.Time
	out      *Replayed

	tasks  map[string]*replayed // by key, as they are in the log
	alive  map[string]bool
	cpu    map[string]int64  // of nodes
	nodes  []string          // of cpu, sorted: sums of fractions depend on their order
	would  map[string]string // where the last plans placed what: by service and slot, the node
	asked  map[string]time.Time
	was    side
	wouldB side
	weight time.Duration
}

// replayed is a task of a log.
type replayed struct {
	service    string
	slot       int
	node, also string // and where it would be
	cpu        int64
	stopped    bool
	over       bool // it has ended, and needs its place no more
}

func slotOf(service string, slot int) string { return fmt.Sprintf("%s.%d", service, slot) }

func (p *replay) read(e *entry) error {
	at := time.Unix(0, e.At).UTC()
	if p.state == nil && !e.Load {
		return errors.New("it does not begin with a snapshot")
	}
	if e.Load && (e.Version < firstLogVersion || e.Version > logVersion) {
		return fmt.Errorf("the log is of version %d; this reads version %d to %d", e.Version, firstLogVersion, logVersion)
	}
	if at.Before(p.now) && !e.Load {
		at = p.now // terms of several leaders, whose clocks differ
	}
	if p.state == nil {
		p.out.From = at
	}
	p.pass(at)
	switch {
	case e.Load:
		return p.load(e)
	case e.Plan:
		p.plan()
		return nil
	default:
		return p.apply(e)
	}
}

// look decides again about a cron job.
func (p *replay) look(f *Fleet, e *entry) error {
	l := e.Look
	name := l.Namespace + "/" + l.Name
	if f.opts.schedules == nil {
		return fmt.Errorf("replay: the log has the cron job %s: %w", name, ErrNoSchedules)
	}
	at := time.Unix(0, e.At).UTC()
	p.out.CronSteps++
	if would := l.decide(f, at); would.equal(l.CronDecision) {
		p.out.SameCronSteps++
	} else {
		p.out.CronDifferences = append(p.out.CronDifferences, CronDifference{At: at, CronJob: name, Was: l.CronDecision, Would: would})
	}
	return nil
}

func item(key string, raw json.RawMessage) (store.Item, error) {
	var l logged
	if err := json.Unmarshal(raw, &l); err != nil {
		return store.Item{}, fmt.Errorf("%s: %w", key, err)
	}
	return store.Item{Key: key, Value: l.Value, Revision: l.Revision, Created: l.Revision}, nil
}

func (p *replay) load(e *entry) error {
	snapshot := store.Snapshot{Revision: e.Revision}
	for key, raw := range e.Set {
		i, err := item(key, raw)
		if err != nil {
			return err
		}
		snapshot.Items = append(snapshot.Items, i)
	}
	slices.SortFunc(snapshot.Items, func(a, b store.Item) int { return strings.Compare(a.Key, b.Key) })
	old := p.tasks
	p.tasks, p.alive, p.cpu, p.nodes = map[string]*replayed{}, map[string]bool{}, map[string]int64{}, nil
	p.would, p.asked = map[string]string{}, map[string]time.Time{}
	was, would := p.was.imbalance, p.wouldB.imbalance
	p.was, p.wouldB = newSide(), newSide()
	p.was.imbalance, p.wouldB.imbalance = was, would
	for _, i := range snapshot.Items {
		p.note(store.Change{Item: i}, old)
	}
	for _, i := range snapshot.Items {
		if strings.HasPrefix(i.Key, record.Statuses) { // which are before the tasks
			p.note(store.Change{Item: i}, old)
		}
	}
	p.before, p.since, p.expected = nil, nil, nil
	p.state = control.NewState(p.config)
	p.state.Load(snapshot, p.now)
	return nil
}

func (p *replay) apply(e *entry) error {
	b := store.Batch{Revision: e.Revision}
	for key, raw := range e.Set {
		i, err := item(key, raw)
		if err != nil {
			return err
		}
		b.Changes = append(b.Changes, store.Change{Item: i})
	}
	for _, key := range e.Deleted {
		b.Changes = append(b.Changes, store.Change{Item: store.Item{Key: key, Revision: e.Revision}, Deleted: true})
	}
	slices.SortFunc(b.Changes, func(a, b store.Change) int { return strings.Compare(a.Item.Key, b.Item.Key) })
	p.settle(b)
	for _, c := range b.Changes {
		p.note(c, nil)
	}
	p.state.Apply(b, p.now)
	return nil
}

// note keeps what is compared. Before is what was there before a snapshot.
func (p *replay) note(c store.Change, before map[string]*replayed) {
	key := c.Item.Key
	switch {
	case strings.HasPrefix(key, record.Tasks):
		p.noteTask(c, before)
	case strings.HasPrefix(key, record.Alive):
		p.alive[key[len(record.Alive):]] = !c.Deleted
	case strings.HasPrefix(key, record.Nodes):
		id := key[len(record.Nodes):]
		i, had := slices.BinarySearch(p.nodes, id)
		var rec record.Node
		switch {
		case c.Deleted || json.Unmarshal(c.Item.Value, &rec) != nil:
			delete(p.cpu, id)
			if had {
				p.nodes = slices.Delete(p.nodes, i, i+1)
			}
		default:
			p.cpu[id] = rec.Capacity.CPU
			if !had {
				p.nodes = slices.Insert(p.nodes, i, id)
			}
		}
	case strings.HasPrefix(key, record.Statuses):
		var rec record.Status
		if t := p.tasks[record.Tasks+key[len(record.Statuses):]]; t != nil && !c.Deleted && json.Unmarshal(c.Item.Value, &rec) == nil && rec.State.Final() {
			p.leave(t)
		}
	default:
		p.was.note(key, c.Item.Value, c.Deleted)
	}
}

// note keeps whether a service or a job has tasks without a place, in the words of
// its rollout or its run.
func (s *side) note(key string, value []byte, deleted bool) {
	name, ok := strings.CutPrefix(key, record.Rollouts)
	if !ok {
		if name, ok = strings.CutPrefix(key, record.Runs); !ok {
			return
		}
	}
	delete(s.unplaced, name) // a service and a job do not share a name
	var rec struct{ Unplaced string }
	if !deleted && json.Unmarshal(value, &rec) == nil && rec.Unplaced != "" {
		s.unplaced[name] = true
	}
}

func (p *replay) noteTask(c store.Change, before map[string]*replayed) {
	key := c.Item.Key
	t := p.tasks[key]
	if c.Deleted {
		if t != nil {
			p.leave(t)
			delete(p.tasks, key)
		}
		return
	}
	var rec record.Task
	if json.Unmarshal(c.Item.Value, &rec) != nil {
		return
	}
	if t == nil {
		t = &replayed{service: rec.Namespace + "/" + rec.Service, slot: rec.Slot, node: rec.Node, also: rec.Node, cpu: rec.Request.Resources.CPU}
		if o := before[key]; o != nil {
			t.also = o.also
		} else if p.state != nil && before == nil && !rec.Erase {
			p.compare(t)
		}
		p.tasks[key] = t
		p.was.load[t.node] += t.cpu
		p.wouldB.load[t.also] += t.cpu
	}
	if rec.Stop != nil && !t.stopped {
		t.stopped = true
		if rec.Stop.Reason == record.ReasonNodeLost || rec.Stop.Reason == record.ReasonDrained {
			p.moved(t)
		}
	}
}

// settle looks whether what was placed then is what the last plan placed. If so the
// state goes on from that plan, as the planner's own did, with all that it remembers;
// else from before it, since what was decided then is what happens.
func (p *replay) settle(b store.Batch) {
	if p.before == nil {
		return
	}
	for _, c := range b.Changes {
		if !strings.HasPrefix(c.Item.Key, record.Tasks) || c.Deleted || p.tasks[c.Item.Key] != nil {
			continue
		}
		var rec record.Task
		if json.Unmarshal(c.Item.Value, &rec) != nil || p.expected[c.Item.Key] != rec.Node {
			p.expected[c.Item.Key] = rec.Node // it never was
			p.diverge()
			return
		}
		delete(p.expected, c.Item.Key)
	}
	p.since = append(p.since, stamped{b, p.now})
}

// diverge has the state go on from before the last plan, unless all that it placed
// has come.
func (p *replay) diverge() {
	if p.before != nil && len(p.expected) > 0 {
		p.state = p.before
		for _, b := range p.since {
			p.state.Apply(b.batch, b.at)
		}
	}
	p.before, p.since, p.expected = nil, nil, nil
}

// stamped is what was applied when.
type stamped struct {
	batch store.Batch
	at    time.Time
}

// plan decides what to do as it is now, and keeps what that is.
func (p *replay) plan() {
	p.out.Plans++
	for slot, at := range p.asked {
		if p.now.Sub(at) > time.Minute { // nobody placed it
			delete(p.asked, slot)
			delete(p.would, slot)
		}
	}
	p.diverge() // what was expected has not come
	before := p.state.Clone()
	plan := p.state.Plan(p.now)
	if len(plan.Writes) == 0 {
		return
	}
	p.before, p.since, p.expected = before, nil, map[string]string{}
	for _, w := range plan.Writes {
		switch {
		case strings.HasPrefix(w.Key, record.Tasks) && !w.Delete:
			var rec record.Task
			if p.tasks[w.Key] == nil && json.Unmarshal(w.Value, &rec) == nil {
				slot := slotOf(rec.Namespace+"/"+rec.Service, rec.Slot)
				p.would[slot], p.asked[slot] = rec.Node, p.now
				p.expected[w.Key] = rec.Node
			}
		default:
			p.wouldB.note(w.Key, w.Value, w.Delete)
		}
	}
}

func (p *replay) end() *Replayed {
	p.out.To = p.now
	if p.weight > 0 {
		p.out.Was.Imbalance = p.was.imbalance / float64(p.weight)
		p.out.Would.Imbalance = p.wouldB.imbalance / float64(p.weight)
	}
	return p.out
}
