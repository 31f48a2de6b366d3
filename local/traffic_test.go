//go:build linux

package local

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/orchestrate-go/orchestrate"
)

// Every way to a service leads to all of its tasks, and to nobody else.
func TestSpread(t *testing.T) {
	f := openFleet(t)
	s := service("web", 3)
	s.Ports[0].Published = 8081
	up(t, f, s)
	var want []string
	for _, task := range tasks(t, f, "web") {
		want = append(want, task.ID)
	}
	slices.Sort(want)
	addresses := []string{"127.0.0.1:8081", at(hostIPv4.Addr(), 8081), at(hostIPv6.Addr(), 8081)}
	for _, a := range virtual(t, f, "web") {
		addresses = append(addresses, at(a, 80))
	}
	for _, address := range addresses {
		counts := answers(t, address, 90)
		if got := slices.Sorted(maps.Keys(counts)); !slices.Equal(got, want) {
			t.Errorf("%s was answered by %v, want all of %v", address, counts, want)
		}
	}
}

// A task reaches its own service's address, also when it is the only one, and
// other services'.
func TestFromInside(t *testing.T) {
	f := openFleet(t)
	apply(t, f, service("one", 1), service("two", 1))
	completed(t, f, "one")
	completed(t, f, "two")
	id := one(t, f, "one").ID
	for _, addr := range virtual(t, f, "one") {
		url := "http://" + at(addr, 80) + "/"
		if got := get(t, at(addr, 80), "/fetch?"+url); got != id+" " {
			t.Errorf("the task asks its own service at %s: got %q, want itself, %s", addr, got, id)
		}
	}
	from := virtual(t, f, "one")[0]
	for _, addr := range virtual(t, f, "two") {
		url := "http://" + at(addr, 80) + "/"
		if got, want := get(t, at(from, 80), "/fetch?"+url), one(t, f, "two").ID+" "; got != want {
			t.Errorf("a task asks another service at %s: got %q, want %q", addr, got, want)
		}
	}
}

// A port that a service has is refused to another, and free once it is
// removed.
func TestPublishedTwice(t *testing.T) {
	f := openFleet(t)
	s := service("web", 1)
	s.Ports[0].Published = 8081
	up(t, f, s)
	other := s
	other.Name = "other"
	err := f.Apply(t.Context(), other)
	var port *orchestrate.PortError
	if !errors.As(err, &port) || port.Owner != "default/web" || port.Port != 8081 {
		t.Fatalf("Apply of a service with a published port that web has: got %v, want a PortError that names it", err)
	}
	if err := f.Remove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	up(t, f, other)
	if got, want := get(t, "127.0.0.1:8081", "/"), one(t, f, "other").ID+" "; got != want {
		t.Errorf("the port after it changed hands: answered by %q, want %q", got, want)
	}
}

// Two fleets in one process have a port each, and services of one name.
func TestTwoFleets(t *testing.T) {
	a, b := openFleet(t), openFleet(t)
	for i, f := range []*Fleet{a, b} {
		s := service("web", 2)
		s.Ports[0].Published = 8081 + uint16(i)
		apply(t, f, s)
	}
	completed(t, a, "web")
	completed(t, b, "web")
	for address, f := range map[string]*Fleet{"127.0.0.1:8081": a, "127.0.0.1:8082": b} {
		counts := answers(t, address, 40)
		for _, task := range tasks(t, f, "web") {
			if counts[task.ID] == 0 {
				t.Errorf("%s was answered by %v, want also %s", address, counts, task.ID)
			}
			delete(counts, task.ID)
		}
		if len(counts) > 0 {
			t.Errorf("%s was answered by %v of the other fleet", address, counts)
		}
	}
	va, vb := virtual(t, a, "web"), virtual(t, b, "web")
	if slices.ContainsFunc(va, func(x netip.Addr) bool { return slices.Contains(vb, x) }) {
		t.Errorf("virtual addresses of two fleets on a machine: %v and %v, want no common one", va, vb)
	}
}

// After Scale to 0 nothing answers, and after Scale back everything does.
func TestScale(t *testing.T) {
	f := openFleet(t)
	s := service("web", 2)
	s.Ports[0].Published = 8081
	up(t, f, s)
	first := tasks(t, f, "web")
	scale := func(n int) {
		t.Helper()
		if err := f.Scale(t.Context(), "web", n); err != nil {
			t.Fatal(err)
		}
		completed(t, f, "web")
	}
	scale(3)
	if got := tasks(t, f, "web"); len(got) != 3 || got[0].ID != first[0].ID || got[1].ID != first[1].ID {
		t.Errorf("after Scale to 3: got %+v, want the two of before and one more", got)
	}
	scale(0)
	if got := tasks(t, f, "web"); len(got) != 0 {
		t.Errorf("after Scale to 0: got %+v, want no task", got)
	}
	if got, err := ask("127.0.0.1:8081", "/"); err == nil {
		t.Errorf("after Scale to 0: answered by %q, want an error", got)
	}
	scale(2)
	if counts := answers(t, "127.0.0.1:8081", 40); len(counts) != 2 {
		t.Errorf("after Scale to 2: answered by %v, want two tasks", counts)
	}
}
