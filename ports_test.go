package orchestrate_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

// publishing is a service that publishes ports.
func publishing(name string, ports ...orchestrate.Port) orchestrate.Service {
	for i := range ports {
		ports[i].Port = uint16(8000 + i)
	}
	return orchestrate.Service{Name: name, Template: orchestrate.Template{
		Containers: []orchestrate.Container{{Image: "img:1"}}, Ports: ports,
	}}
}

// A published port of an address is another's whichever way the address is
// written, and one of another address is not, in one service or in two.
func TestPublishedAddresses(t *testing.T) {
	at := func(ip string) orchestrate.Port { return orchestrate.Port{Published: 80, HostIP: ip} }
	for _, tt := range []struct {
		a, b  string
		clash bool
	}{
		{"", "", true},
		{"", "192.0.2.1", true},
		{"", "2001:db8::1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"2001:db8::1", "2001:DB8:0:0::1", true},
		{"2001:db8::1", "2001:db8::2", false},
		{"0.0.0.0", "192.0.2.1", true},
		{"0.0.0.0", "2001:db8::1", false},
		{"::", "2001:db8::1", true},
		{"::", "192.0.2.1", false},
		{"::ffff:0.0.0.0", "192.0.2.1", true},
	} {
		for _, order := range [][2]string{{tt.a, tt.b}, {tt.b, tt.a}} {
			f, err := orchestrate.New(memory.New(memory.Options{}))
			if err != nil {
				t.Fatal(err)
			}
			if err := publishing("one", at(order[0]), at(order[1])).Validate(); (err != nil) != tt.clash {
				t.Errorf("one service with %q: got %v, want a mistake: %v", order, err, tt.clash)
			}
			if err := f.Apply(context.Background(), publishing("a", at(order[0]))); err != nil {
				t.Fatal(err)
			}
			err = f.Apply(context.Background(), publishing("b", at(order[1])))
			var taken *orchestrate.PortError
			if errors.As(err, &taken) != tt.clash || !tt.clash && err != nil {
				t.Errorf("two services with %q: got %v, want a PortError: %v", order, err, tt.clash)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// What one service gives up in an Apply another can take in it, in whatever
// order they are named; and two cannot both have it.
func TestPublishedPortsMove(t *testing.T) {
	port := func(n uint16) orchestrate.Port { return orchestrate.Port{Published: n} }
	f, err := orchestrate.New(memory.New(memory.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	apply := func(what string, objects ...orchestrate.Object) {
		t.Helper()
		if err := f.Apply(t.Context(), objects...); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	apply("two services", publishing("a", port(80)), publishing("b", port(81)))
	apply("they change places", publishing("a", port(81)), publishing("b", port(80)))
	apply("the port's new owner is named first", publishing("c", port(81)), publishing("a"))
	apply("and last", publishing("c"), publishing("a", port(81)))

	var taken *orchestrate.PortError
	err = f.Apply(t.Context(), publishing("d", port(90)), publishing("e", port(90)))
	if !errors.As(err, &taken) || taken.Service != "default/e" || taken.Owner != "default/d" {
		t.Errorf("two new services with one port: got %v, want the second refused", err)
	}
	// The first revision of b published what a has now.
	err = f.Rollback(t.Context(), "b", 1)
	if !errors.As(err, &taken) || taken.Owner != "default/a" {
		t.Errorf("Rollback to a port that another has by now: got %v, want a PortError", err)
	}
}

// publishedBy is what the nodes are told to publish for a service.
func publishedBy(t *testing.T, s store.Store, name string) (ports []uint16) {
	t.Helper()
	synctest.Wait()
	item, _, err := store.Get(t.Context(), s, record.Key(record.Frontends, "default", name))
	if err != nil {
		t.Fatal(err)
	}
	var f record.Frontend
	if err := json.Unmarshal(item.Value, &f); err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Ports {
		if p.Published != 0 {
			ports = append(ports, p.Published)
		}
	}
	return ports
}

// A revision that is gone back to has no port that another service took while the
// spec had given it up, and has it again when the other is gone.
func TestRollbackLeavesPortsOfOthers(t *testing.T) {
	for _, during := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			f, rt, s := open(t)
			rt.SetImage("img:missing", runtimememory.Image{Program: runtimememory.Program{StartErr: runtimememory.ErrCommandNotFound, StartErrPermanent: true}})
			web := publishing("web", orchestrate.Port{Published: 80}, orchestrate.Port{Published: 81})
			mustApply(t, f, web)
			mustEnd(t, f, "web", orchestrate.RolloutCompleted)
			other := publishing("other", orchestrate.Port{Published: 80})
			bad := publishing("web", orchestrate.Port{}, orchestrate.Port{Published: 81})
			bad.Containers[0].Image = "img:missing"
			if during {
				mustApply(t, f, bad, other)
			} else {
				mustApply(t, f, bad)
			}
			r := mustEnd(t, f, "web", orchestrate.RolloutFailed)
			if r.Rollback == nil || r.Rollback.Outcome != orchestrate.RolloutCompleted {
				t.Fatalf("%v; want it rolled back", r)
			}
			if during && !strings.Contains(r.Rollback.Message, "80/tcp belongs to service default/other") {
				t.Errorf("the rollback says %q, want which port it has not", r.Rollback.Message)
			}
			if got := publishedBy(t, s, "web"); !during && !slices.Equal(got, []uint16{80, 81}) {
				t.Errorf("rolled back, web publishes %v, want what it did before", got)
			}
			mustApply(t, f, other)
			mustEnd(t, f, "other", orchestrate.RolloutCompleted)
			if got := publishedBy(t, s, "web"); !slices.Equal(got, []uint16{81}) {
				t.Errorf("web publishes %v beside the service that has port 80, want 81 alone", got)
			}
			if got := publishedBy(t, s, "other"); !slices.Equal(got, []uint16{80}) {
				t.Errorf("the other publishes %v, want 80", got)
			}
			if err := f.Remove(t.Context(), "other"); err != nil {
				t.Fatal(err)
			}
			if got := publishedBy(t, s, "web"); !slices.Equal(got, []uint16{80, 81}) {
				t.Errorf("with the other gone, web publishes %v, want what its revision does", got)
			}
		})
	}
}
