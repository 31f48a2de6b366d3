package orchestrate

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// WithRecorder has the fleet write to w, while it leads, all that it decides by:
// revisions, tasks, statuses, nodes, schedules with their runs, and the clock.
// [Replay] decides by that again, with the code of then or another strategy. Nothing
// else ever enters the log: no environment, command, file, header or label of a
// container, no output, no message of a failure, no actor. Names, images, resources, and labels
// of nodes, services and jobs do.
//
// A slow w does not delay the fleet: what waits for it is bounded by 64 MiB, and
// when that is full the log ends there, which the logger is told. W is not closed.
// Each term of leadership begins with a snapshot, and stands alone: a file that is
// appended to is one log.
func WithRecorder(w io.Writer) Option { return func(o *options) { o.recorder = w } }

// logVersion is that of the log's form. A reader refuses another.
const logVersion = 2

// firstLogVersion is the oldest that is still read: it has no cron jobs.
const firstLogVersion = 1

// maxRecorded bounds the bytes that wait for a recorder's writer.
const maxRecorded = 64 << 20

// entry is one line of a log, in JSON. One that is a snapshot has a Version.
type entry struct {
	Version int `json:"orchestrate,omitempty"`
	// At is when it was, in nanoseconds since 1970.
	At int64 `json:"t"`
	// Load says that this is a snapshot: nothing else is there.
	Load bool `json:"load,omitempty"`
	// Revision is that of the commit, or of the snapshot.
	Revision int64                      `json:"r,omitempty"`
	Set      map[string]json.RawMessage `json:"set,omitempty"`
	Deleted  []string                   `json:"del,omitempty"`
	// Plan says that it was decided what to do.
	Plan bool `json:"plan,omitempty"`
	// Look is that it was decided what to do about a cron job.
	Look *look `json:"look,omitempty"`
}

// recorder writes a log. It is a control.Recorder.
type recorder struct {
	mu     sync.Mutex // guards what follows
	queue  [][]byte
	bytes  int
	ended  error // why nothing more is written
	closed bool
	looked map[string]string // the last look at each cron job in this term, as JSON
	wake   chan struct{}     // has room for one
}

var errRecorder = errors.New("the recorder's writer does not keep up")

// record starts to record, where that is asked for. The function ends it once all
// is written, and returns why it ended before.
func (f *Fleet) record() (*recorder, func() error) {
	if f.opts.recorder == nil {
		return nil, func() error { return nil }
	}
	r := &recorder{wake: make(chan struct{}, 1)}
	var done sync.WaitGroup
	done.Go(func() { r.write(f.opts.recorder) })
	return r, func() error {
		r.mu.Lock()
		r.closed = true
		r.mu.Unlock()
		r.ring()
		done.Wait()
		return r.ended
	}
}

func (r *recorder) ring() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// write writes what is queued, until the recorder is closed and all is written.
func (r *recorder) write(w io.Writer) {
	out := bufio.NewWriter(w)
	for range r.wake {
		r.mu.Lock()
		lines, closed := r.queue, r.closed
		r.queue, r.bytes = nil, 0
		r.mu.Unlock()
		var err error
		for _, line := range lines {
			if _, err = out.Write(line); err != nil {
				break
			}
		}
		if err == nil {
			err = out.Flush()
		}
		if err != nil {
			r.mu.Lock()
			r.ended, r.queue, r.bytes = err, nil, 0
			r.mu.Unlock()
		}
		if closed {
			return // nothing is queued after that
		}
	}
}

func (r *recorder) put(e entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queued(e)
}

// queued queues an entry. r.mu is held.
func (r *recorder) queued(e entry) {
	line, err := json.Marshal(e)
	if err != nil {
		return // its values are JSON that was made here
	}
	switch {
	case r.ended != nil || r.closed:
		return
	case r.bytes+len(line) > maxRecorded && len(r.queue) > 0:
		r.ended = errRecorder
	default:
		r.queue = append(r.queue, append(line, '\n'))
		r.bytes += len(line)
	}
	r.ring()
}

// Load is part of control.Recorder.
func (r *recorder) Load(s store.Snapshot, now time.Time) {
	e := entry{Version: logVersion, At: now.UnixNano(), Load: true, Revision: s.Revision, Set: map[string]json.RawMessage{}}
	for _, item := range s.Items {
		if value := bare(item.Key, item.Value); value != nil {
			e.Set[item.Key] = withRevision(value, item.Revision)
		}
	}
	r.put(e)
}

// Apply is part of control.Recorder.
func (r *recorder) Apply(b store.Batch, now time.Time) {
	e := entry{At: now.UnixNano(), Revision: b.Revision}
	for _, c := range b.Changes {
		if c.Deleted {
			if bares[recordKind(c.Item.Key)] != nil {
				e.Deleted = append(e.Deleted, c.Item.Key)
			}
		} else if value := bare(c.Item.Key, c.Item.Value); value != nil {
			if e.Set == nil {
				e.Set = map[string]json.RawMessage{}
			}
			e.Set[c.Item.Key] = withRevision(value, c.Item.Revision)
		}
	}
	r.put(e)
}

// Plan is part of control.Recorder.
func (r *recorder) Plan(now time.Time) { r.put(entry{At: now.UnixNano(), Plan: true}) }

// logged is a record in a log: with its own revision, which a rollout names.
type logged struct {
	Revision int64           `json:"r"`
	Value    json.RawMessage `json:"v"`
}

func withRevision(value json.RawMessage, revision int64) json.RawMessage {
	data, err := json.Marshal(logged{revision, value})
	if err != nil {
		return nil
	}
	return data
}

// bares makes of each kind of record what a log has of it. What is of no kind here
// is not in a log.
var bares = map[string]func(value []byte) (any, error){
	record.Services: bareService, record.Jobs: bareJob,
	record.Tasks: bareTask, record.Statuses: bareStatus,
	record.Rollouts: bareRollout, record.Runs: bareRun,
	record.Nodes: as[record.Node], record.NodeSpecs: bareNodeSpec, record.Alive: as[struct{}],
	record.Networks: bareNetwork, record.Frontends: as[record.Frontend], record.Directives: bareDirective,
	record.Scales: bareScale, record.Evictions: bareEviction, record.Volumes: as[record.Volume],
}

func recordKind(key string) string {
	if key == "" {
		return ""
	}
	if i := strings.IndexByte(key[1:], '/'); i >= 0 {
		return key[:i+2]
	}
	return ""
}

// bare is what a log has of a record; nil is nothing.
func bare(key string, value []byte) json.RawMessage {
	strip := bares[recordKind(key)]
	if strip == nil {
		return nil
	}
	rec, err := strip(value)
	if err != nil {
		return nil // the planner ignores it too
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return nil
	}
	return data
}

// as keeps what the type has, of a record that has nothing to hide.
func as[T any](value []byte) (any, error) {
	var rec T
	err := json.Unmarshal(value, &rec)
	return rec, err
}

// bareTemplate is what a plan looks at. Fields are named one by one, so that one
// that is added later is not in a log until somebody has thought of it.
func bareTemplate(t Template) Template {
	containers := func(list []Container) (out []Container) {
		for _, c := range list {
			out = append(out, Container{Name: c.Name, Image: c.Image, Pull: c.Pull, Resources: c.Resources})
		}
		return out
	}
	out := Template{
		Init: containers(t.Init), Sidecars: containers(t.Sidecars), Containers: containers(t.Containers),
		Networks: t.Networks, HostNetwork: t.HostNetwork, Ports: t.Ports, Restart: t.Restart, Placement: t.Placement,
		StopGrace: t.StopGrace, DrainDelay: t.DrainDelay,
	}
	for _, v := range t.Volumes {
		v.Options, v.Labels = nil, nil
		out.Volumes = append(out.Volumes, v)
	}
	for _, v := range t.SlotVolumes {
		v.Options, v.Labels = nil, nil
		out.SlotVolumes = append(out.SlotVolumes, v)
	}
	return out
}

func bareService(value []byte) (any, error) {
	var rec record.Service
	if err := json.Unmarshal(value, &rec); err != nil {
		return nil, err
	}
	var s Service
	if err := json.Unmarshal(rec.Spec, &s); err != nil {
		return nil, err
	}
	s.Template = bareTemplate(s.Template)
	spec, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	rec.Spec, rec.Seen, rec.Actor = spec, nil, ""
	bareUnresolved(rec.Unresolved)
	for i := range rec.History {
		var t Template
		if err := json.Unmarshal(rec.History[i].Template, &t); err != nil {
			return nil, err
		}
		if rec.History[i].Template, err = json.Marshal(bareTemplate(t)); err != nil {
			return nil, err
		}
	}
	return rec, nil
}

// bareUnresolved keeps of which images it is, and not what a registry answered.
func bareUnresolved(why map[string]string) {
	for ref := range why {
		why[ref] = "it has no digest yet"
	}
}

func bareJob(value []byte) (any, error) {
	var rec record.Job
	if err := json.Unmarshal(value, &rec); err != nil {
		return nil, err
	}
	var j Job
	if err := json.Unmarshal(rec.Spec, &j); err != nil {
		return nil, err
	}
	j.Template = bareTemplate(j.Template)
	spec, err := json.Marshal(j)
	rec.Spec, rec.Actor = spec, ""
	bareUnresolved(rec.Unresolved)
	return rec, err
}

func bareTask(value []byte) (any, error) {
	var rec record.Task
	err := json.Unmarshal(value, &rec)
	rec.Template = json.RawMessage("{}") // it goes through the planner as it is
	return rec, err
}

func bareNodeSpec(value []byte) (any, error) {
	var rec record.NodeSpec
	err := json.Unmarshal(value, &rec)
	rec.Actor = ""
	return rec, err
}

func bareDirective(value []byte) (any, error) {
	var rec record.Directive
	err := json.Unmarshal(value, &rec)
	rec.Actor = ""
	return rec, err
}

func bareEviction(value []byte) (any, error) {
	var rec record.Eviction
	err := json.Unmarshal(value, &rec)
	rec.Actor = ""
	return rec, err
}

func bareNetwork(value []byte) (any, error) {
	var rec record.Network
	err := json.Unmarshal(value, &rec)
	rec.Options = nil
	return rec, err
}

func bareFailure(f *record.Failure) *record.Failure {
	if f == nil {
		return nil
	}
	return &record.Failure{Kind: f.Kind, Container: f.Container, ExitCode: f.ExitCode, At: f.At, Permanent: f.Permanent}
}

func bareStatus(value []byte) (any, error) {
	var rec record.Status
	if err := json.Unmarshal(value, &rec); err != nil {
		return nil, err
	}
	out := record.Status{
		Task: rec.Task, Namespace: rec.Namespace, Service: rec.Service, Node: rec.Node, State: rec.State, Since: rec.Since,
		Ready: rec.Ready, Failure: bareFailure(rec.Failure), Restarts: rec.Restarts,
		InForce: rec.InForce, InForceSince: rec.InForceSince, Refused: rec.Refused,
	}
	if n := rec.Next; n != nil {
		out.Next = &record.Fetched{Hash: n.Hash, Done: n.Done, Failure: bareFailure(n.Failure)}
	}
	return out, nil
}

func bareAttempt(a *record.Attempt) {
	a.Failure = bareFailure(a.Failure)
	a.Message = ""
}

// bareUnplaced keeps that tasks have no place, and not why: that may be what a
// registry answered.
func bareUnplaced(why string) string {
	if why == "" {
		return ""
	}
	return "there is no place for it"
}

func bareRollout(value []byte) (any, error) {
	var rec record.Rollout
	err := json.Unmarshal(value, &rec)
	bareAttempt(&rec.Attempt)
	rec.Unplaced = bareUnplaced(rec.Unplaced)
	if rec.Rollback != nil {
		bareAttempt(rec.Rollback)
	}
	return rec, err
}

func bareRun(value []byte) (any, error) {
	var rec record.Run
	err := json.Unmarshal(value, &rec)
	rec.Message, rec.Failure, rec.Unplaced = "", bareFailure(rec.Failure), bareUnplaced(rec.Unplaced)
	return rec, err
}

func bareScale(value []byte) (any, error) {
	var rec record.Scale
	err := json.Unmarshal(value, &rec)
	return record.Scale{Created: rec.Created, Replicas: rec.Replicas}, err
}
