package control_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

// A task that gets ready again and again, and never stays so, is no progress.
func TestFlappingRolloutEnds(t *testing.T) {
	s := newSim(t)
	s.node("n1", 1000)
	s.apply("web", spec{Replicas: 2, Image: "v1", Update: control.Update{Monitor: 10 * time.Second, ProgressDeadline: time.Minute}})
	s.plan()
	for range 100 {
		for _, state := range []record.State{record.Ready, record.Running} {
			for _, task := range s.tasks("web") {
				s.report(task, state, nil)
			}
			s.plan()
			s.pass(5 * time.Second)
		}
	}
	if r := s.rollout("web"); r.State != record.RolloutFailed || r.Reason != record.WhyDeadline || r.Ended.Sub(r.Started) > 2*time.Minute {
		t.Errorf("the rollout is %s for %q after %v, want failed by its deadline within two minutes", r.State, r.Reason, r.Ended.Sub(r.Started))
	}
}

// No two services have one address, whatever comes and goes, and nobody's moves.
func TestAddresses(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newSim(t)
		s.node("n1", 1000)
		prefixes := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/29"), netip.MustParsePrefix("fd09::/120")}
		s.commit(store.Put(record.Networks+"net", marshal(t, record.Network{Name: "net", Virtual: prefixes})))
		had := map[string]string{}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			name := fmt.Sprintf("s%d", rapid.IntRange(0, 9).Draw(rt, "service"))
			what := rapid.SampledFrom([]string{"apply", "apply", "remove", "leader", "time"}).Draw(rt, "what")
			switch what {
			case "apply":
				sp := spec{
					Replicas: 0, Image: "v1", Networks: []string{"net"},
					Ports: []record.Port{{Protocol: "tcp", Port: uint16(rapid.IntRange(1, 9).Draw(rt, "port"))}},
				}
				s.apply(name, sp)
				if rapid.Bool().Draw(rt, "another at once") {
					s.apply(fmt.Sprintf("s%d", rapid.IntRange(0, 9).Draw(rt, "another")), sp)
				}
			case "remove":
				s.commit(store.Delete(record.Key(record.Services, "default", name)))
				delete(s.specs, name)
				delete(had, name)
			case "leader":
				s.lead()
			case "time":
				s.pass(time.Minute)
			}
			s.plan()
			taken := map[netip.Addr]string{}
			for key, item := range s.kv {
				name, ok := strings.CutPrefix(key, record.Frontends+"default/")
				if !ok {
					continue
				}
				var f record.Frontend
				unmarshal(t, item.Value, &f)
				addrs := f.Addresses["net"]
				if len(addrs) != 2 || !prefixes[0].Contains(addrs[0]) || !prefixes[1].Contains(addrs[1]) {
					rt.Fatalf("%s has %v, want one address of each of %v", name, addrs, prefixes)
				}
				for _, a := range addrs {
					if taken[a] != "" {
						rt.Fatalf("%s and %s both have %v", name, taken[a], a)
					}
					taken[a] = name
				}
				if old := had[name]; old != "" && old != fmt.Sprint(addrs) {
					rt.Fatalf("the addresses of %s moved from %s to %v", name, old, addrs)
				}
				had[name] = fmt.Sprint(addrs)
			}
			if what == "apply" && had[name] == "" && len(taken) < 2*6 {
				rt.Fatalf("%s has no address while %d of 6 are taken", name, len(taken)/2)
			}
			for name := range s.specs {
				r := s.rollout(name)
				if want := record.RolloutCompleted; had[name] != "" && r.State != want {
					rt.Fatalf("%s has addresses, and its rollout is %s, want %s", name, r.State, want)
				}
				if had[name] == "" && (r.State != record.RolloutFailed || r.Reason != record.WhyAddress) {
					rt.Fatalf("%s has no address, and its rollout is %s for %q", name, r.State, r.Reason)
				}
			}
		}
	})
}

// An address that was freed is not the next one's.
func TestAddressRests(t *testing.T) {
	s := newSim(t)
	s.commit(store.Put(record.Networks+"net", marshal(t, record.Network{Name: "net", Virtual: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/28")}})))
	seen := map[string]string{}
	for i := range 14 { // as many as there are
		name := fmt.Sprintf("s%d", i)
		s.apply(name, spec{Image: "v1", Networks: []string{"net"}, Ports: []record.Port{{Port: 80}}})
		s.plan()
		addr := string(s.kv[record.Frontends+"default/"+name].Value)
		if other := seen[addr]; other != "" {
			t.Errorf("%s got the frontend of %s, which was removed just before: %s", name, other, addr)
		}
		seen[addr] = name
		s.commit(store.Delete(record.Key(record.Services, "default", name)))
		delete(s.specs, name)
		s.plan()
	}
}

func TestTaskIDs(t *testing.T) {
	s := newSim(t)
	s.node("n1", 1000)
	long := strings.Repeat("a-very-long-name", 4)[:63]
	for _, name := range []string{"w", long[:62], long} {
		s.apply(name, spec{Replicas: 12, Image: "v1"})
	}
	s.plan()
	tasks := s.tasks("")
	if len(tasks) != 36 {
		t.Fatalf("%d tasks, want 36", len(tasks))
	}
	for _, task := range tasks {
		if len(task.ID) > 50 || strings.Trim(task.ID, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
			t.Errorf("task ID %q is not at most 50 of [a-z0-9.-]", task.ID)
		}
		if want := fmt.Sprintf(".%d.", task.Slot); !strings.Contains(task.ID, want) {
			t.Errorf("task ID %q does not tell slot %d", task.ID, task.Slot)
		}
	}
}

// Records that make no sense are reported, and hurt nobody else.
func TestBadRecords(t *testing.T) {
	s := newSim(t)
	s.node("n1", 1000)
	for _, prefix := range []string{
		record.Services, record.Rollouts, record.Frontends, record.Tasks, record.Statuses,
		record.Nodes, record.NodeSpecs, record.Networks,
	} {
		for _, name := range []string{"x", "x/y", "x/y/z"} {
			for _, value := range []string{"", "{", "null", `[]`, `"text"`, `{"id": 7}`, `{"id": "q", "node": "p"}`} {
				s.commit(store.Put(prefix+name, []byte(value)))
			}
		}
	}
	s.commit(store.Put("/other/key", nil), store.Put("/x", nil))
	s.apply("web", spec{Replicas: 1, Image: "v1"})
	s.plan()
	if got := len(s.tasks("web")); got != 1 {
		t.Errorf("%d tasks run beside bad records, want 1", got)
	}
	if !strings.Contains(strings.Join(s.log, "\n"), string(control.RecordIgnored)) {
		t.Error("no bad record was reported")
	}
	s.lead()
}

// A more important service takes the room of a less important one, if the
// scheduler is told to preempt.
func TestPreemption(t *testing.T) {
	s := newSim(t)
	preempting, err := scheduler.New(scheduler.Options{Preempt: true})
	if err != nil {
		t.Fatal(err)
	}
	s.place = preempting
	s.lead()
	watch(s)
	s.node("n1", 200)
	s.apply("low", spec{Replicas: 2, Image: "v1", Memory: 100})
	s.plan()
	s.apply("high", spec{Replicas: 1, Image: "v1", Memory: 100, Priority: 10})
	s.apply("low", spec{Replicas: 2, Image: "v1", Memory: 100, Labels: "x"}) // is planned in the same pass
	s.plan()
	if got := len(s.tasks("high")); got != 1 {
		t.Errorf("%d tasks of high, want 1", got)
	}
	var stopped []string
	for _, task := range s.tasks("low") {
		if task.Stop != nil {
			stopped = append(stopped, task.Stop.Reason)
		}
	}
	if len(stopped) != 1 || stopped[0] != record.ReasonPreempted {
		t.Errorf("tasks of low were stopped for %v, want one for %s", stopped, record.ReasonPreempted)
	}
	if r := s.rollout("low"); r.Unplaced == "" || r.Updated != 1 {
		t.Errorf("the rollout of low is %+v, want one task and one replica without a place", r)
	}
}
