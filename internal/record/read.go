package record

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"time"

	"github.com/orchestrate-go/orchestrate/scheduler"
)

// ReadTask reads the record of a task, as json.Unmarshal does.
func ReadTask(data []byte, t *Task) error {
	r := reader{data: data}
	*t = Task{}
	if r.task(t); r.ended() {
		return nil
	}
	*t = Task{}
	return json.Unmarshal(data, t)
}

// ReadStatus reads the record of a task's status, as json.Unmarshal does.
func ReadStatus(data []byte, s *Status) error {
	r := reader{data: data}
	*s = Status{}
	if r.status(s); r.ended() {
		return nil
	}
	*s = Status{}
	return json.Unmarshal(data, s)
}

// Brief is what there is to know of an event for keeping and forgetting it.
type Brief struct {
	At        time.Time `json:"at"`
	Kind      EventKind `json:"kind"`
	Namespace string    `json:"namespace"`
	Service   string    `json:"service"`
	Node      string    `json:"node"`
	Network   string    `json:"network"`
	Cause     Cause     `json:"cause"`
}

// ReadBriefs reads what is in brief in a record of events, as json.Unmarshal does.
func ReadBriefs(data []byte) ([]Brief, error) {
	r := reader{data: data}
	if all := r.briefs(); r.ended() {
		return all, nil
	}
	var rec struct{ Events []Brief }
	err := json.Unmarshal(data, &rec)
	return rec.Events, err
}

var taskKeys = []string{
	"id", "namespace", "service", "slot", "node", "revision", "hash", "created", "template", "request", "frontend",
	"epoch", "erase", "measure", "shape", "resized", "next", "job", "stop",
}

func (r *reader) task(t *Task) {
	last := -1
	for r.take('{'); r.more('}'); {
		switch r.key(&last, taskKeys) {
		case 0:
			t.ID = r.string()
		case 1:
			t.Namespace = r.string()
		case 2:
			t.Service = r.string()
		case 3:
			t.Slot = int(r.int())
		case 4:
			t.Node = r.string()
		case 5:
			t.Revision = r.int()
		case 6:
			t.Hash = r.string()
		case 7:
			t.Created = r.time()
		case 8:
			t.Template = bytes.Clone(r.raw())
		case 9:
			t.Request.Namespace, t.Request.Service = t.Namespace, t.Service
			r.request(&t.Request)
		case 10:
			t.Frontend = r.bool()
		case 11:
			t.Epoch = r.int()
		case 12:
			t.Erase = r.bool()
		case 13:
			t.Measure = time.Duration(r.int())
		case 14:
			t.Shape = r.string()
		case 15:
			t.Resized = r.time()
		case 16:
			r.other(&t.Next)
		case 17:
			r.other(&t.Job)
		case 18:
			r.other(&t.Stop)
		}
	}
}

var requestKeys = []string{
	"namespace", "service", "labels", "count", "resources", "volumes", "platforms", "images", "constraints", "spread", "maxPerNode", "strategy", "prefer", "avoid",
}

// request reads what most requests have. What namespace and service are before is
// what they probably are.
func (r *reader) request(q *scheduler.Request) {
	namespace, service := q.Namespace, q.Service
	q.Namespace, q.Service = "", ""
	last := -1
	for r.take('{'); r.more('}'); {
		switch r.key(&last, requestKeys) {
		case 0:
			q.Namespace = r.same(namespace)
		case 1:
			q.Service = r.same(service)
		case 2:
			r.other(&q.Labels)
		case 3:
			q.Count = int(r.int())
		case 4:
			r.resources(&q.Resources)
		case 5:
			r.other(&q.Volumes)
		case 6:
			r.other(&q.Platforms)
		case 7:
			q.Images = r.strings()
		case 8:
			r.other(&q.Constraints)
		case 9:
			r.other(&q.Spread)
		case 10:
			q.MaxPerNode = int(r.int())
		case 11:
			q.Strategy = r.string()
		case 12:
			q.Prefer = r.strings()
		case 13:
			q.Avoid = r.strings()
		}
	}
}

var resourceKeys = []string{"cpu", "memory", "disk", "devices"}

func (r *reader) resources(x *scheduler.Resources) {
	last := -1
	for r.take('{'); r.more('}'); {
		switch r.key(&last, resourceKeys) {
		case 0:
			x.CPU = r.int()
		case 1:
			x.Memory = r.int()
		case 2:
			x.Disk = r.int()
		case 3:
			r.other(&x.Devices)
		}
	}
}

var statusKeys = []string{
	"task", "namespace", "service", "node", "state", "since", "ready", "failure", "restarts", "addresses", "containers",
	"inForce", "inForceSince", "refused", "next",
}

func (r *reader) status(s *Status) {
	last := -1
	for r.take('{'); r.more('}'); {
		switch r.key(&last, statusKeys) {
		case 0:
			s.Task = r.string()
		case 1:
			s.Namespace = r.string()
		case 2:
			s.Service = r.string()
		case 3:
			s.Node = r.string()
		case 4:
			s.State = State(r.string())
		case 5:
			s.Since = r.time()
		case 6:
			s.Ready = r.time()
		case 7:
			r.other(&s.Failure)
		case 8:
			s.Restarts = int(r.int())
		case 9:
			s.Addresses = r.addresses()
		case 10:
			s.Containers = r.containers()
		case 11:
			s.InForce = r.string()
		case 12:
			s.InForceSince = r.time()
		case 13:
			s.Refused = r.string()
		case 14:
			r.other(&s.Next)
		}
	}
}

// addresses reads those by network.
func (r *reader) addresses() map[string][]netip.Addr {
	all := map[string][]netip.Addr{}
	for r.take('{'); r.more('}'); {
		network := r.string()
		r.take(':')
		if _, twice := all[network]; twice {
			r.fail()
		}
		all[network] = r.addrs()
	}
	return all
}

var containerKeys = []string{"name", "id", "running", "ready", "pid", "restarts", "started", "exitCode", "oom"}

func (r *reader) containers() []ContainerStatus {
	all := []ContainerStatus{}
	for r.take('['); r.more(']'); {
		var c ContainerStatus
		last := -1
		for r.take('{'); r.more('}'); {
			switch r.key(&last, containerKeys) {
			case 0:
				c.Name = r.string()
			case 1:
				c.ID = r.string()
			case 2:
				c.Running = r.bool()
			case 3:
				c.Ready = r.bool()
			case 4:
				c.PID = int(r.int())
			case 5:
				c.Restarts = int(r.int())
			case 6:
				c.Started = r.time()
			case 7:
				c.ExitCode = int(r.int())
			case 8:
				c.OOM = r.bool()
			}
		}
		all = append(all, c)
	}
	return all
}

var (
	eventsKeys = []string{"events", "decisions", "forgotten"}
	eventKeys  = []string{
		"at", "kind", "namespace", "service", "task", "slot", "node", "network", "revision", "state", "restarts", "reason",
		"message", "failure", "cause", "scale", "decision",
	}
	causeKeys = []string{"actor", "revision", "reason", "trigger", "parent"}
)

func (r *reader) briefs() []Brief {
	var all []Brief
	last := -1
	for r.take('{'); r.more('}'); {
		if r.key(&last, eventsKeys) != 0 {
			r.raw()
			continue
		}
		all = []Brief{}
		for r.take('['); r.more(']'); {
			var b Brief
			r.brief(&b)
			all = append(all, b)
		}
	}
	return all
}

func (r *reader) brief(b *Brief) {
	last := -1
	for r.take('{'); r.more('}'); {
		switch r.key(&last, eventKeys) {
		case 0:
			b.At = r.time()
		case 1:
			b.Kind = EventKind(r.string())
		case 2:
			b.Namespace = r.string()
		case 3:
			b.Service = r.string()
		case 6:
			b.Node = r.string()
		case 7:
			b.Network = r.string()
		case 14:
			r.cause(&b.Cause)
		default: // what is in an event and not in brief
			r.raw()
		}
	}
}

func (r *reader) cause(c *Cause) {
	last := -1
	for r.take('{'); r.more('}'); {
		switch r.key(&last, causeKeys) {
		case 0:
			c.Actor = r.string()
		case 1:
			c.Revision = r.int()
		case 2:
			c.Reason = r.string()
		case 3:
			c.Trigger = r.string()
		case 4:
			c.Parent = r.int()
		}
	}
}
