package orchestrate_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cron"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
	storememory "github.com/orchestrate-go/orchestrate/store/memory"
)

// FuzzReads puts any record into a store, as an older, a newer or a hostile version
// may have written it, and has every call read it that reads. An error is an
// answer; a call that panics or does not return is none.
func FuzzReads(f *testing.F) {
	for _, seed := range []struct{ key, value string }{
		{record.Services + "default/web", `{"spec": {"name": "web", "replicas": 3}, "hash": "h", "revision": 2, "history": [{"revision": 1, "template": null}]}`},
		{record.Services + "default/web", `{"spec": null}`},
		{record.Rollouts + "default/web", `{"state": "?", "rollback": {}, "completed": [{}], "waiting": [{}]}`},
		{record.Tasks + "n1/web.0.x", `{"id": "web.0.x", "node": "n2", "namespace": "", "service": "web", "slot": -7, "stop": {}}`},
		{record.Statuses + "n1/web.0.x", `{"state": "ready", "addresses": {"": [""]}, "containers": [{}], "failure": {}}`},
		{record.Jobs + "default/sums", `{"spec": {"name": "sums", "completions": -1}, "run": 0, "digests": {"": ""}, "unresolved": {"a": ""}}`},
		{record.Runs + "default/sums", `{"run": 0, "done": "0-99,3", "failed": "bits:AAAAAAAAAAA=", "tries": {"-1": {}}}`},
		{record.Runs + "default/sums", `{"done": "9-1", "failed": "bits:?"}`},
		{record.Crons + "default/c", `{"spec": {"name": "c", "schedule": "@every -1s", "timeZone": "Nowhere"}}`},
		{record.CronStates + "default/c", `{"active": [""], "missed": -1, "outcome": "?"}`},
		{record.Nodes + "n1", `{"id": "", "capacity": {"memory": -1}, "fence": -1}`},
		{record.NodeSpecs + "n1", `{"drain": true, "draining": {"deadline": "0001-01-01T00:00:00Z"}, "taints": [{}]}`},
		{record.Networks + "net", `{"subnets": ["10.0.0.0/33"], "virtual": [""]}`},
		{record.Frontends + "default/web", `{"addresses": {"net": ["10.0.0.1", "::"]}, "ports": [{}]}`},
		{record.Scales + "default/web", `{"replicas": -1, "metrics": [{}]}`},
		{record.Evictions + "n1/web.0.x", `{}`},
		{record.LeaderEvents(1, 1), `{"events": [{"kind": "task-placed", "decision": 9}], "decisions": [null]}`},
		{record.NodeEvents("n1", 1), `{"events": [{"kind": "service-removed", "service": "web"}], "forgotten": 99}`},
		{record.Kept + "node", `{"events": [{}]}`},
		{record.Oblivion, `{"revision": -1}`},
		{record.Leader, `me`},
		{record.Acks + "n1", `{"revision": "1"}`},
	} {
		f.Add(seed.key, []byte(seed.value))
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if store.ValidateKey(key) != nil || len(value) > 1<<16 {
			t.Skip("no store takes it")
		}
		s := storememory.New(storememory.Options{})
		defer s.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		fleet, err := orchestrate.New(s, orchestrate.WithSchedules(cron.Parse))
		if err != nil {
			t.Fatal(err)
		}
		defer fleet.Close()
		if err := fleet.Apply(ctx, image("a")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put(key, value)}}); err != nil {
			t.Fatal(err)
		}
		ns, name, _ := strings.Cut(strings.TrimPrefix(strings.TrimLeft(key, "/"), "services/"), "/")
		for _, name := range []string{"web", "sums", "c", ns + "/" + name, "web.0.x"} {
			fleet.Get(ctx, name)
			fleet.Job(ctx, name)
			fleet.CronJob(ctx, name)
			fleet.History(ctx, name)
			fleet.Tasks(ctx, name)
			fleet.Why(ctx, name)
			fleet.Events(ctx, orchestrate.EventFilter{Service: name})
		}
		fleet.List(ctx, "")
		fleet.Jobs(ctx, "")
		fleet.CronJobs(ctx, "")
		fleet.Tasks(ctx, "")
		fleet.Nodes(ctx)
		fleet.Networks(ctx)
		fleet.Plan(ctx, image("b"))
		fleet.Plan(ctx, orchestrate.Removal{Name: "web"})
		fleet.WhatIf(ctx, orchestrate.NodesDie("n1"))
		fleet.PlanReplaceImage(ctx, "img:a", "img:b@"+contentDigest("x"))
		fleet.Scale(ctx, "web", 2)
		watching, stop := context.WithCancel(ctx)
		if events, err := fleet.Watch(watching, orchestrate.WatchAfter("")); err == nil {
			// What there is comes first, up to the change made now.
			if err := fleet.Apply(ctx, orchestrate.Network{Name: "last"}); err == nil {
				for e := range events {
					if e.Network == "last" {
						break
					}
				}
			}
		}
		stop()
		if ctx.Err() != nil {
			t.Fatal("a call has not returned")
		}
	})
}

// FuzzPlan reads plans that were kept as JSON, and by whom nobody knows: applying
// one does what it says, or nothing.
func FuzzPlan(f *testing.F) {
	f.Add([]byte(`{"changes": [{"kind": "service", "name": "default/web", "after": {"name": "web", "containers": [{"image": "img:a"}]}}]}`))
	f.Add([]byte(`{"changes": [{"kind": "service", "name": "default/web", "before": {"name": "web"}}], "basis": {"/services/default/web": 1}}`))
	f.Add([]byte(`{"changes": [{"kind": "cronjob", "name": "x", "after": {"schedule": "* * * * *"}, "digests": {"a": "b"}}]}`))
	f.Add([]byte(`{"changes": [{"kind": "job", "name": "/", "before": null, "after": null, "from": -1}], "basis": {"": 0, "//": 3}}`))
	f.Add([]byte(`{"changes": [{"kind": "network", "name": "net", "after": {"subnets": ["10.0.0.0/8"]}, "implicit": true}], "left": [{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p orchestrate.Plan
		if json.Unmarshal(data, &p) != nil {
			return
		}
		_ = p.String()
		_, _ = p.Inverse()
		s := storememory.New(storememory.Options{})
		defer s.Close()
		fleet, err := orchestrate.New(s, orchestrate.WithSchedules(cron.Parse))
		if err != nil {
			t.Fatal(err)
		}
		defer fleet.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		before, err := s.List(ctx, "/")
		if err != nil {
			t.Fatal(err)
		}
		if err := fleet.ApplyPlan(ctx, &p); err != nil {
			after, listErr := s.List(ctx, "/")
			if listErr != nil || after.Revision != before.Revision {
				t.Fatalf("a plan that was refused (%v) changed something", err)
			}
		}
		if ctx.Err() != nil {
			t.Fatal("a call has not returned")
		}
	})
}
