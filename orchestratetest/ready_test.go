package orchestratetest_test

import (
	"context"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/node"
	"github.com/orchestrate-go/orchestrate/orchestratetest"
	"github.com/orchestrate-go/orchestrate/store"
)

// TestReadyInvariantsHold has them all hold where everything fails.
func TestReadyInvariantsHold(t *testing.T) {
	for seed := range uint64(3) {
		s := chaos(100 + seed)
		s.Always = orchestratetest.Ready()
		s.Script = []orchestratetest.Step{
			{At: 20 * time.Minute, Do: orchestratetest.Apply{Objects: []orchestrate.Object{revised(web(12))}}},
			{At: 40 * time.Minute, Do: orchestratetest.Drain{Node: "n3"}},
			{At: 60 * time.Minute, Do: orchestratetest.Uncordon{Node: "n3"}},
			{At: 70 * time.Minute, Do: orchestratetest.Scale{Name: "probed", Replicas: 5}},
			{At: 80 * time.Minute, Do: orchestratetest.Remove{Names: []string{"db"}}},
		}
		orchestratetest.Run(t, s)
	}
}

func revised(s orchestrate.Service) orchestrate.Service {
	s.Containers = []orchestrate.Container{s.Containers[0]}
	s.Containers[0].Image = "web:2"
	return s
}

// edit changes the JSON of the records that a process writes under a prefix.
func edit(of, prefix string, change func(rec map[string]any) bool) func(string, store.Txn) store.Txn {
	return func(actor string, txn store.Txn) store.Txn {
		if !strings.HasPrefix(actor, of) {
			return txn
		}
		for i, w := range txn.Writes {
			var rec map[string]any
			if w.Delete || !strings.HasPrefix(w.Key, prefix) || json.Unmarshal(w.Value, &rec) != nil {
				continue
			}
			if change(rec) {
				data, err := json.Marshal(rec)
				if err != nil {
					panic(err)
				}
				txn.Writes[i].Value = data
			}
		}
		return txn
	}
}

// sameAddress gives all tasks of all nodes one address; neverFree frees none.
type (
	sameAddress struct{ network.Driver }
	neverFree   struct{ network.Driver }
)

func (n sameAddress) Attach(ctx context.Context, a network.Attachment) (network.Interface, error) {
	i, err := n.Driver.Attach(ctx, a)
	if len(i.Addresses) > 0 {
		i.Addresses = []netip.Prefix{netip.MustParsePrefix("10.9.9.9/24")}
	}
	return i, err
}

func (neverFree) Detach(context.Context, network.Attachment) error { return nil }

// TestReadyInvariantsCatch plants a mistake for each, of the kind that the code
// could have.
func TestReadyInvariantsCatch(t *testing.T) {
	roll := []orchestratetest.Step{{At: 10 * time.Minute, Do: orchestratetest.Apply{Objects: []orchestrate.Object{revised(web(6))}}}}
	die := []orchestratetest.Step{{At: 10 * time.Minute, Do: orchestratetest.NodeDies{Node: "n1"}}}
	db := orchestrate.Service{Name: "db", Replicas: 1, Stateful: &orchestrate.Stateful{},
		Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "db:1"}}}}
	for name, tc := range map[string]struct {
		invariant orchestratetest.Invariant
		script    []orchestratetest.Step
		object    orchestrate.Object
		agent     func(*node.Options)
		tamper    func(string, store.Txn) store.Txn
		says      string
	}{
		"a planner that stops old tasks before new ones serve": {
			invariant: orchestratetest.KeepsAvailable(), script: roll, says: "was told to stop (updated) with",
			tamper: func() func(string, store.Txn) store.Txn {
				old := map[string]store.Write{}
				return func(actor string, txn store.Txn) store.Txn {
					for _, w := range txn.Writes {
						if !strings.HasPrefix(actor, "control") || !strings.HasPrefix(w.Key, "/tasks/") || w.Delete {
							continue
						}
						var rec map[string]any
						if json.Unmarshal(w.Value, &rec) == nil && rec["revision"] == 1.0 {
							rec["stop"] = map[string]any{"reason": "updated", "at": time.Now()}
							data, _ := json.Marshal(rec)
							old[w.Key] = store.Put(w.Key, data)
						} else if rec["revision"] == 2.0 {
							for key, stop := range old {
								txn.Writes = append(txn.Writes, stop)
								delete(old, key)
							}
						}
					}
					return txn
				}
			}(),
		},
		"a planner that gives a slot away while it runs": {
			invariant: orchestratetest.AtMostOnce(), object: db, says: "slot default/db.0 starts as db.0.twin",
			tamper: func(actor string, txn store.Txn) store.Txn {
				for _, w := range txn.Writes {
					var rec map[string]any
					if strings.HasPrefix(actor, "control") && strings.HasPrefix(w.Key, "/tasks/n1/db.0") && !strings.Contains(w.Key, "twin") && json.Unmarshal(w.Value, &rec) == nil {
						rec["id"], rec["node"] = "db.0.twin", "n2"
						data, _ := json.Marshal(rec)
						txn.Writes = append(txn.Writes, store.Put("/tasks/n2/db.0.twin", data))
					}
				}
				return txn
			},
		},
		"a scheduler that does not add up": {
			invariant: orchestratetest.NoOvercommit(), says: "were promised",
			tamper: edit("control", "/tasks/", func(rec map[string]any) bool {
				rec["request"].(map[string]any)["resources"].(map[string]any)["cpu"] = 3000
				return true
			}),
		},
		"an agent whose endpoints outlive its node": {
			invariant: orchestratetest.NoDeadEndpoints(), script: die, says: "node n1 has been off for",
			tamper: func(_ string, txn store.Txn) store.Txn {
				for i := range txn.Writes {
					if strings.HasPrefix(txn.Writes[i].Key, "/endpoints/") {
						txn.Writes[i].Lease = ""
					}
				}
				return txn
			},
		},
		"an agent that leaves the endpoint of what has ended": {
			invariant: orchestratetest.NoDeadEndpoints(), script: roll, says: "has ended, and its endpoint",
			tamper: func(_ string, txn store.Txn) store.Txn {
				writes := txn.Writes[:0:0]
				for _, w := range txn.Writes {
					if !w.Delete || !strings.HasPrefix(w.Key, "/endpoints/") {
						writes = append(writes, w)
					}
				}
				txn.Writes = writes
				return txn
			},
		},
		"a planner that never ends a rollout": {
			invariant: orchestratetest.EveryApplyEnds(30 * time.Minute), says: "its rollout goes on",
			tamper: func(_ string, txn store.Txn) store.Txn {
				writes := txn.Writes[:0:0]
				for _, w := range txn.Writes {
					if !strings.HasPrefix(w.Key, "/rollouts/") || !strings.Contains(string(w.Value), `"completed"`) {
						writes = append(writes, w)
					}
				}
				txn.Writes = writes
				return txn
			},
		},
		"a planner that writes again what is there": {
			invariant: orchestratetest.NoOvercommit(), says: "the fleet comes to rest",
			tamper: edit("control", "/rollouts/", func(rec map[string]any) bool {
				ended := rec["state"] == "completed"
				rec["state"] = "progressing"
				return ended
			}),
		},
		"a driver that frees no interface": {
			invariant: orchestratetest.NothingLeaked(), script: roll, says: "has an interface on network default",
			agent: func(o *node.Options) { o.Network = neverFree{o.Network} },
		},
		"a driver that gives an address twice": {
			invariant: orchestratetest.UniqueAddresses(), says: "have the address 10.9.9.9",
			agent: func(o *node.Options) { o.Network = sameAddress{o.Network} },
		},
		"a service that is too small": {
			invariant: orchestratetest.AtLeast("web", 6), script: die, says: "4 of 6",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.object == nil {
				tc.object = web(6)
			}
			s := orchestratetest.Scenario{
				Objects: []orchestrate.Object{tc.object}, Script: tc.script, Always: []orchestratetest.Invariant{tc.invariant}, Shrink: -1,
			}
			whole := orchestratetest.Explore(t, s) // without the mistake
			if name != "a service that is too small" && whole.Failure != nil {
				t.Fatalf("it does not hold of the code as it is: %v", whole.Failure)
			}
			s.Agent = tc.agent
			r := orchestratetest.Explore(t, s.Tamper(tc.tamper))
			if r.Failure == nil || !strings.Contains(r.Failure.Error(), tc.says) {
				t.Errorf("found %v, want %q", r.Failure, tc.says)
				for _, e := range r.Events[max(0, len(r.Events)-30):] {
					t.Log(e)
				}
			}
		})
	}
}

// TestOwnInvariants are those of a user.
func TestOwnInvariants(t *testing.T) {
	s := orchestratetest.Scenario{
		Objects: []orchestrate.Object{web(6)},
		Script:  []orchestratetest.Step{{At: 10 * time.Minute, Do: orchestratetest.NodeDies{Node: "n1", For: 10 * time.Minute}}},
		Shrink:  -1,
	}
	serve := func(v *orchestratetest.View) error {
		n := 0
		for task := range v.Tasks() {
			if task.Serves() && v.Node(task.Node).Alive {
				n++
			}
		}
		if n < 6 {
			return errFew
		}
		return nil
	}
	s.Eventually = []orchestratetest.Eventual{orchestratetest.Eventually("six serve again", time.Minute, serve)}
	if r := orchestratetest.Explore(t, s); r.Failure != nil {
		t.Errorf("six serve again within a minute: %v", r.Failure)
	}
	s.Eventually[0].Within = 20 * time.Second // a node is lost after 30
	if r := orchestratetest.Explore(t, s); r.Failure == nil || r.Failure.At < 10*time.Minute {
		t.Errorf("six serve again within 20 s: %v, want a failure after the node died", r.Failure)
	}
	s.Eventually = nil
	s.Always = []orchestratetest.Invariant{orchestratetest.Always("n1 lives", func(v *orchestratetest.View) error {
		if n := v.Node("n1"); n != nil && v.Since() > time.Minute && !n.Alive {
			return errFew
		}
		return nil
	})}
	if r := orchestratetest.Explore(t, s); r.Failure == nil || r.Failure.At < 10*time.Minute || r.Failure.At > 10*time.Minute+5*time.Second {
		t.Errorf("n1 lives: %v, want a failure within its lease's TTL of its death", r.Failure)
	}
}

// TestEventuallyAgain has what became true without a word be false again later.
func TestEventuallyAgain(t *testing.T) {
	s := orchestratetest.Scenario{Shrink: -1, Objects: []orchestrate.Object{web(6)}}
	for at := 10 * time.Minute; at < time.Hour; at += 10 * time.Minute {
		s.Script = append(s.Script, orchestratetest.Step{At: at, Do: orchestratetest.ContainerCrashes{Service: "web"}})
	}
	s.Eventually = []orchestratetest.Eventual{orchestratetest.Eventually("it is early", time.Minute, func(v *orchestratetest.View) error {
		if at := v.Since(); at >= 10*time.Minute && at < 10*time.Minute+30*time.Second || at >= 20*time.Minute {
			return errFew
		}
		return nil
	})}
	if r := orchestratetest.Explore(t, s); r.Failure == nil || r.Failure.At != 21*time.Minute {
		t.Errorf("%v, want a failure a minute after it was false for the second time", r.Failure)
	}
}

type few struct{}

func (few) Error() string { return "too few" }

var errFew = few{}

// TestHeldWithoutAgent has an agent be dead for longer than its node may run what
// must not run twice: the machine ends that by itself, as a real one does.
func TestHeldWithoutAgent(t *testing.T) {
	db := orchestrate.Service{Name: "db", Replicas: 3, Stateful: &orchestrate.Stateful{},
		Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "db:1"}}}}
	r := orchestratetest.Run(t, orchestratetest.Scenario{
		Nodes: []orchestratetest.NodeGroup{{Count: 4}}, Objects: []orchestrate.Object{db},
		Script: []orchestratetest.Step{
			{At: 10 * time.Minute, Do: orchestratetest.AgentRestarts{Node: "n1", For: 5 * time.Minute}},
			{At: 20 * time.Minute, Do: orchestratetest.AgentRestarts{Node: "n2", For: 10 * time.Second}},
			{At: 30 * time.Minute, Do: orchestratetest.NodeHangs{Node: "n3", For: 5 * time.Minute}},
		},
		Always: orchestratetest.Ready(),
	})
	if n := r.Counts[orchestratetest.TaskPlaced]; n != 5 {
		t.Errorf("%d tasks were placed, want three, and one more for each of the two nodes that were away for long", n)
	}
}
