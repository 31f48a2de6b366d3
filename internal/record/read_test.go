package record

import (
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

// full are records with something in every field.
func full() (Task, Status, []Event) {
	at := time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC)
	task := Task{
		ID: "web.3.abc", Namespace: "default", Service: "web", Slot: 3, Node: "n1", Revision: 12, Hash: "h", Created: at,
		Template: json.RawMessage(`{"a":[0.25,-1.5e-7,"\u0026 \"é\"",-1,true,null,{}],"b":{"c":[]}}`),
		Request: scheduler.Request{
			Namespace: "default", Service: "web", Labels: map[string]string{"a": "b"}, Count: 1,
			Resources: scheduler.Resources{CPU: 500, Memory: 1 << 40, Disk: 3, Devices: []scheduler.Device{{Kind: "gpu", Model: "a", Count: 2}}},
			Volumes:   []scheduler.Volume{{}}, Platforms: []scheduler.Platform{{OS: "linux", Arch: "arm64"}}, Images: []string{"x:1", "y"},
			Spread: []scheduler.SpreadKey{{}}, MaxPerNode: 2, Strategy: "spread", Prefer: []string{"n1"}, Avoid: []string{"n2", "n3"},
		},
		Frontend: true, Epoch: 99, Erase: true, Measure: time.Second, Shape: "s", Resized: at,
		Next: &Next{Hash: "n", Images: []NextImage{{Ref: "r"}}}, Job: &JobTask{Attempt: 2}, Stop: &Stop{Reason: ReasonScaled, At: at},
	}
	status := Status{
		Task: "web.3.abc", Namespace: "default", Service: "web", Node: "n1", State: Ready, Since: at, Ready: at,
		Failure: &Failure{Kind: FailedExit, Message: "a <b> & \"c\"", Log: []string{"x\ny"}, At: at}, Restarts: 4,
		Addresses:  map[string][]netip.Addr{"a": {netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, "b": {}},
		Containers: []ContainerStatus{{Name: "main", ID: "i", Running: true, Ready: true, PID: 7, Restarts: 1, Started: at, ExitCode: -1, OOM: true}, {}},
		InForce:    "f", InForceSince: at, Refused: "r", Next: &Fetched{},
	}
	events := []Event{
		{At: at, Kind: NodeChanged, Node: "n1", Cause: Cause{Actor: "alice", Revision: 1, Reason: "r", Trigger: "t", Parent: 4}, Message: "a \"b\" é"},
		{
			At: at, Kind: ServiceApplied, Namespace: "default", Service: "web", Task: "t", Slot: 1, Network: "x", Revision: 3, State: Ready, Restarts: 2,
			Reason: "r", Failure: &Failure{Message: "<"}, Scale: &Scaling{From: 1, To: 2}, Decision: &scheduler.Decision{},
		},
	}
	return task, status, events
}

// agree fails the test unless reading a record comes to what encoding/json makes of it.
func agree(t *testing.T, data []byte) {
	t.Helper()
	var task, wantTask Task
	if err, want := ReadTask(data, &task), json.Unmarshal(data, &wantTask); (err == nil) != (want == nil) || err == nil && !reflect.DeepEqual(task, wantTask) {
		t.Fatalf("of %q ReadTask makes %+v, %v; want %+v, %v", data, task, err, wantTask, want)
	}
	var status, wantStatus Status
	if err, want := ReadStatus(data, &status), json.Unmarshal(data, &wantStatus); (err == nil) != (want == nil) || err == nil && !reflect.DeepEqual(status, wantStatus) {
		t.Fatalf("of %q ReadStatus makes %+v, %v; want %+v, %v", data, status, err, wantStatus, want)
	}
	var rec struct{ Events []Brief }
	briefs, err := ReadBriefs(data)
	if want := json.Unmarshal(data, &rec); (err == nil) != (want == nil) || err == nil && !reflect.DeepEqual(briefs, rec.Events) {
		t.Fatalf("of %q ReadBriefs makes %+v, %v; want %+v, %v", data, briefs, err, rec.Events, want)
	}
}

func encoded(t testing.TB, v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// What is written is read without encoding/json, whatever fields it has.
func TestReadWhatIsWritten(t *testing.T) {
	task, status, events := full()
	var empty Task
	empty.Template = json.RawMessage("{}")
	for _, v := range []Task{task, empty} {
		r := reader{data: encoded(t, v)}
		var got Task
		if r.task(&got); !r.ended() || !reflect.DeepEqual(got, v) {
			t.Errorf("of %s the reader makes %+v, and ended %v", r.data, got, r.ended())
		}
	}
	for _, v := range []Status{status, {}} {
		r := reader{data: encoded(t, v)}
		var got Status
		if r.status(&got); !r.ended() || !reflect.DeepEqual(got, v) {
			t.Errorf("of %s the reader makes %+v, and ended %v", r.data, got, r.ended())
		}
	}
	r := reader{data: EncodeEvents(events)}
	got := r.briefs()
	if !r.ended() || len(got) != 2 || got[0].Cause != events[0].Cause || got[1].Service != "web" || got[1].Network != "x" {
		t.Errorf("of %s the reader makes %+v, and ended %v", r.data, got, r.ended())
	}
}

// One byte less, more or other: reading says what encoding/json says.
func TestReadDamaged(t *testing.T) {
	task, status, events := full()
	bytes := []byte(`"\{}[]:,0-9.+Eeé. ` + "\n\x00\x80tfn")
	rounds := 100
	rng := rand.New(rand.NewPCG(1, 2))
	for _, data := range [][]byte{encoded(t, task), encoded(t, status), EncodeEvents(events)} {
		agree(t, data)
		for at := range data {
			agree(t, data[:at])
			other := append([]byte{}, data...)
			other[at] = bytes[rng.IntN(len(bytes))]
			agree(t, other)
			agree(t, append(append(append([]byte{}, data[:at]...), bytes[rng.IntN(len(bytes))]), data[at:]...))
			agree(t, append(append([]byte{}, data[:at]...), data[at+1:]...))
		}
		for range rounds { // a part of it twice, or elsewhere
			from, to, at := rng.IntN(len(data)), rng.IntN(len(data)), rng.IntN(len(data))
			if from > to {
				from, to = to, from
			}
			agree(t, append(append(append([]byte{}, data[:at]...), data[from:to]...), data[at:]...))
		}
	}
}

// FuzzRead reads anything as encoding/json does.
func FuzzRead(f *testing.F) {
	task, status, events := full()
	f.Add(encoded(f, task))
	f.Add(encoded(f, status))
	f.Add(EncodeEvents(events))
	f.Add([]byte(`{"id":"a","ID":"b","slot":1e2,"template":null,"request":{"resources":{"devices":null}}}`))
	f.Add([]byte(`{"task":"a","addresses":{"n":["10.0.0.1"],"n":[]},"restarts":-0}`))
	f.Fuzz(func(t *testing.T, data []byte) { agree(t, data) })
}

func BenchmarkReadTask(b *testing.B) {
	task, _, _ := full()
	task.Request.Labels, task.Request.Volumes, task.Request.Platforms, task.Request.Spread, task.Request.Resources.Devices = nil, nil, nil, nil, nil
	task.Next, task.Job, task.Stop = nil, nil, nil
	data := encoded(b, task)
	for name, read := range map[string]func([]byte, *Task) error{"reader": ReadTask, "json": func(data []byte, t *Task) error { return json.Unmarshal(data, t) }} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				var t Task
				if err := read(data, &t); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
