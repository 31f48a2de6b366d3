package control_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
	"github.com/orchestrate-go/orchestrate/store"
)

var update = flag.Bool("update", false, "write what the planner does into the stories")

// TestStories plays the files of testdata/stories. Each is a list of scenes: what
// happens, one command a line, then "----" and what the planner did about it.
// Lines that begin with # tell the reader what is going on. See play for the
// commands.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/stories/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var told strings.Builder
			s := newSim(t)
			s.keep = strings.HasPrefix(filepath.Base(file), "events")
			for scene := range strings.SplitSeq(strings.TrimSpace(string(data)), "\n\n") {
				commands, want, _ := strings.Cut(scene+"\n", "----\n")
				s.log = nil
				for line := range strings.SplitSeq(strings.TrimSpace(commands), "\n") {
					if !strings.HasPrefix(line, "#") {
						s.play(line)
					}
				}
				got := strings.Join(s.log, "\n") + "\n"
				if len(s.log) == 0 {
					got = "nothing\n"
				}
				if !*update && got != want {
					t.Fatalf("after\n%s\ngot\n%s\nwant\n%s\n(go test -update accepts what the planner does now)", commands, got, want)
				}
				fmt.Fprintf(&told, "%s----\n%s\n", commands, got)
			}
			if *update {
				if err := os.WriteFile(file, []byte(strings.TrimRight(told.String(), "\n")+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// play does one command and lets the planner answer.
//
//	node ID [memory=N] [zone=Z] [fence=D] [fetches=yes]   a node joins, or is changed, with memory 1000 unless said
//	inforce|refuses|killed TASK...  what became of bounds that were changed: set, not to be set, and the death of it
//	taint ID KEY                keeps new tasks off it
//	volume NODE SERVICE SLOT NAME [REACH]   its agent has the volume, reached from there alone unless said
//	gone NODE SERVICE SLOT NAME             and has it no more
//	fence ID                    someone vouches that nothing of it runs
//	silent|returns|deleted ID   it is heard no more; again; its record goes
//	drain|cordon|use ID         what the application wants of it
//	drain ID DURATION [force]   with a deadline
//	scaled NAME N               what the autoscaler of a service wants
//	evict TASK...               moves them; * is any text in a name
//	network NAME RANGE...       a network with these virtual ranges
//	apply NAME key=value...     see applied; what is not named stays as it was
//	remove NAME
//	job NAME [key=value...]     begins a job, of one index that is not tried again unless said; see job
//	unjob NAME                  removes it
//	starting|ready|unready TASK...   what the agents say; * is any text in a name,
//	                            and v2:NAME one of that image
//	fails|hopeless|ends TASK...
//	exits CODE TASK...          fails with that exit code
//	expelled TASK...            its node stopped it, to keep a promise
//	fetched|misfetched|unfetchable TASK...  of the images that it was asked for
//	obey                        all that were told to stop do so
//	promote|abort NAME          what the application tells the leader
//	wait DURATION
//	leader                      another leader takes over
//	nobody DURATION             leads, and then somebody does
//	show NAME                   what there is
//	as ACTOR                    who applies and drains from now on
//	events                      what was kept since the last time; in events*.txt
func (s *sim) play(line string) {
	s.t.Helper()
	words := strings.Fields(line)
	args := words[1:]
	switch words[0] {
	case "node":
		n := record.Node{Node: scheduler.Node{
			ID: args[0], Ready: true, Capacity: scheduler.Resources{Memory: 1000}, Topology: map[string]string{record.NodeSegment: args[0]},
		}, Registration: fmt.Sprint("r", s.rev)}
		for _, a := range args[1:] {
			switch key, value, _ := strings.Cut(a, "="); key {
			case "memory":
				n.Capacity.Memory = s.number(value)
			case "zone":
				n.Labels, n.Topology["zone"] = map[string]string{"zone": value}, value
			case "fetches":
				n.Fetches = value == "yes"
			case "resizes":
				n.Resizes = value == "yes"
			case "fence":
				n.Fence = s.duration(value)
			default:
				s.t.Fatalf("unknown setting %q", a)
			}
		}
		s.commit(store.Put(record.Key(record.Nodes, args[0]), marshal(s.t, n)), store.Put(record.Key(record.Alive, args[0]), nil))
	case "taint":
		s.commit(store.Put(record.Key(record.NodeSpecs, args[0]), marshal(s.t, record.NodeSpec{Taints: []scheduler.Taint{{Key: args[1]}}})))
	case "fence":
		var n record.Node
		unmarshal(s.t, s.kv[record.Key(record.Nodes, args[0])].Value, &n)
		s.commit(store.Put(record.Key(record.NodeSpecs, args[0]), marshal(s.t, record.NodeSpec{Fenced: n.Registration})))
	case "volume":
		v := record.Volume{Namespace: "default", Service: args[1], Slot: int(s.number(args[2])), Template: args[3],
			Name: volumeName(args[1:]), Reach: map[string]string{record.NodeSegment: args[0]}}
		if len(args) > 4 {
			key, value, _ := strings.Cut(args[4], "=")
			v.Reach = map[string]string{key: value}
		}
		s.commit(store.Put(record.Key(record.Volumes, args[0], v.Name), marshal(s.t, v)))
	case "gone":
		s.commit(store.Delete(record.Key(record.Volumes, args[0], volumeName(args[1:]))))
	case "silent":
		s.commit(store.Delete(record.Key(record.Alive, args[0])))
	case "returns":
		s.commit(store.Put(record.Key(record.Alive, args[0]), nil))
	case "deleted":
		s.commit(store.Delete(record.Key(record.Nodes, args[0])))
	case "drain", "cordon", "use":
		if len(args) > 1 {
			s.drain(args[0], s.duration(args[1]), len(args) > 2)
			break
		}
		s.commit(store.Put(record.Key(record.NodeSpecs, args[0]), marshal(s.t, record.NodeSpec{
			Drain: words[0] == "drain", Cordoned: words[0] != "use", Actor: s.actor,
		})))
	case "network":
		n := record.Network{Name: args[0]}
		for _, a := range args[1:] {
			n.Virtual = append(n.Virtual, netip.MustParsePrefix(a))
		}
		s.commit(store.Put(record.Key(record.Networks, args[0]), marshal(s.t, n)))
	case "apply":
		s.apply(args[0], s.applied(s.specs[args[0]], args[1:]))
	case "broken":
		s.commit(store.Put(record.Key(record.Services, "default", args[0]), []byte(`{"spec": "?", "hash": "?"}`)))
	case "job":
		s.job(args[0], args[1:])
	case "unjob":
		s.commit(store.Delete(record.Key(record.Jobs, "default", args[0])))
	case "scaled":
		s.scaled(args[0], int(s.number(args[1])))
	case "evict":
		s.evict(args...)
	case "remove":
		s.commit(store.Delete(record.Key(record.Services, "default", args[0])))
		delete(s.specs, args[0])
	case "inforce", "refuses", "killed":
		s.bounds(words[0], args)
	case "starting", "ready", "unready", "fails", "hopeless", "expelled", "ends", "fetched", "misfetched", "unfetchable":
		s.say(words[0], args)
	case "exits":
		s.code = int(s.number(args[0]))
		s.say("fails", args[1:])
		s.code = 0
	case "obey":
		for _, t := range s.tasks("") {
			if t.Stop != nil {
				s.report(t, record.Stopped, nil)
			}
		}
	case "promote", "abort":
		s.direct(args[0], record.DirectiveAction(words[0]))
	case "wait":
		s.pass(s.duration(args[0]))
	case "leader":
		s.lead()
	case "nobody":
		s.now = s.now.Add(s.duration(args[0]))
		s.lead()
	case "show":
		s.show(args[0])
	case "as":
		s.actor = args[0]
	case "events":
		s.recount()
	default:
		s.t.Fatalf("unknown command %q", line)
	}
	s.plan()
	s.forgetStatuses()
}

// volumeName is the name of a slot's volume: SERVICE SLOT NAME.
func volumeName(args []string) string {
	return fmt.Sprintf("default.%s-%s.%s", args[0], args[1], args[2])
}

func (s *sim) number(text string) int64 {
	s.t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// amount reads such as 3 and 25%.
func (s *sim) amount(text string) control.Amount {
	s.t.Helper()
	if share, ok := strings.CutSuffix(text, "%"); ok {
		return control.Amount(-s.number(share))
	}
	return control.Amount(s.number(text))
}

func (s *sim) duration(text string) time.Duration {
	s.t.Helper()
	d, err := time.ParseDuration(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// applied changes a spec as the words say.
func (s *sim) applied(sp spec, words []string) spec {
	s.t.Helper()
	for _, w := range words {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "replicas":
			sp.Replicas = int(s.number(value))
		case "image":
			sp.Image = value
		case "memory":
			sp.Memory = s.number(value)
		case "priority":
			sp.Priority = int32(s.number(value))
		case "labels":
			sp.Labels = value
		case "network":
			sp.Networks = strings.Split(value, ",")
		case "port":
			sp.Ports = []record.Port{{Protocol: "tcp", Port: uint16(s.number(value)), Virtual: uint16(s.number(value))}}
		case "max":
			sp.Scaled = nil
			if n := int(s.number(value)); n > 0 {
				sp.Scaled = &control.Bounds{Min: 1, Max: n}
			}
		case "budget", "down":
			sp.Budget = &control.Budget{Amount: s.amount(value), Unavailable: key == "down"}
		case "on":
			sp.DependsOn = dependsOn(value)
		case "lostafter":
			sp.LostAfter = -1
			if value != "never" {
				sp.LostAfter = s.duration(value)
			}
		case "keep":
			sp.KeepOriginal = value == "original"
		case "parallelism":
			sp.Update.Parallelism = s.amount(value)
		case "surge":
			sp.Update.MaxSurge = s.amount(value)
		case "unavailable":
			sp.Update.MaxUnavailable = s.amount(value)
		case "strategy":
			sp.Update.Strategy = record.Strategy(value)
		case "canaries":
			sp.Update.Canaries = s.amount(value)
		case "bake":
			sp.Update.Bake = s.duration(value)
		case "manual":
			sp.Update.Manual = value == "yes"
		case "monitor":
			sp.Update.Monitor = s.duration(value)
		case "deadline":
			sp.Update.ProgressDeadline = s.duration(value)
		case "failures":
			sp.Update.MaxFailures = int(s.number(value))
		case "onfailure":
			sp.Update.OnFailure = control.Action(value)
		case "order":
			sp.Update.StopFirst = value == "stop-first"
		case "global":
			sp.Global = value == "true"
		case "constraint":
			sp.Constraint = strings.ReplaceAll(value, "_", " ")
		case "slots": // ordered or parallel
			sp.Stateful = &control.Stateful{Parallel: value == "parallel"}
		case "partition":
			st := *sp.Stateful
			st.Partition = int(s.number(value))
			sp.Stateful = &st
		case "volumes":
			st := *sp.Stateful
			st.Volumes = strings.Split(value, ",")
			sp.Stateful = &st
		case "erase":
			st := *sp.Stateful
			st.EraseScaled, st.EraseRemoved = strings.Contains(value, "scaled"), strings.Contains(value, "removed")
			sp.Stateful = &st
		default:
			s.t.Fatalf("unknown setting %q", w)
		}
	}
	return sp
}

// say reports the state of all tasks whose names match.
func (s *sim) say(what string, patterns []string) {
	s.t.Helper()
	for _, p := range patterns {
		found := false
		hash, name, of := strings.Cut(p, ":")
		if !of {
			name = p
		}
		for _, t := range s.tasks("") {
			if ok, err := filepath.Match(name, s.alias(t.ID)); err != nil {
				s.t.Fatal(err)
			} else if !ok || of && t.Hash != hash {
				continue
			}
			if st, _ := s.status(t); st.State.Final() || what == "ready" && (st.State == record.Ready || t.Stop != nil) {
				continue
			}
			found = true
			switch what {
			case "fetched", "misfetched", "unfetchable":
				s.fetched(t, what)
			case "starting":
				s.report(t, record.Starting, nil)
			case "ready":
				s.report(t, record.Ready, nil)
			case "unready":
				s.report(t, record.Running, nil)
			case "fails":
				s.report(t, record.Failed, &record.Failure{Kind: record.FailedExit, ExitCode: max(s.code, 1), Message: fmt.Sprint("exit ", max(s.code, 1))})
			case "hopeless":
				s.report(t, record.Failed, &record.Failure{Kind: record.FailedImage, Message: "no such image", Permanent: true})
			case "expelled":
				s.report(t, record.Failed, &record.Failure{Kind: record.FailedNode, Message: "the node's lease could not be renewed"})
			case "ends":
				s.report(t, record.Completed, nil)
			}
		}
		if !found {
			s.t.Fatalf("%s %s: there is no such task\n%s", what, p, strings.Join(s.log, "\n"))
		}
	}
}

// show logs what there is of a service.
func (s *sim) show(name string) {
	s.printf("rollout %s: %s", name, describe(s.rollout(name), record.Rollout{}))
	for _, t := range s.tasks(name) {
		state := "unseen"
		if st, ok := s.status(t); ok {
			state = string(st.State)
		}
		if t.Stop != nil {
			state += ", to stop: " + t.Stop.Reason
		}
		s.printf("%s on %s: %s, %s", s.alias(t.ID), t.Node, t.Hash, state)
	}
}

// fetched reports what became of the images that a task's agent was asked for.
func (s *sim) fetched(t record.Task, what string) {
	s.t.Helper()
	st, ok := s.status(t)
	if t.Next == nil || !ok {
		s.t.Fatalf("%s was asked for no images", s.alias(t.ID))
	}
	st.Next = &record.Fetched{Hash: t.Next.Hash, Done: what == "fetched"}
	if what != "fetched" {
		st.Next.Failure = &record.Failure{Kind: record.FailedImage, Message: "no such image", Permanent: what == "unfetchable", At: s.now}
	}
	s.commit(store.Put(record.Key(record.Statuses, t.Node, t.ID), marshal(s.t, st)))
}
