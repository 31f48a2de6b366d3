//go:build linux

package local

import (
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

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

// A port that a program of the host has is told with the service that wants
// it, and taken once it is free. Other services are not held up.
func TestPortTakenByTheHost(t *testing.T) {
	f := openFleet(t)
	l, err := net.Listen("tcp", ":8081")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := service("web", 1)
	s.Ports[0].Published = 8081
	s.Update.ProgressDeadline = 30 * time.Second
	events := watch(t, f)
	apply(t, f, s, service("other", 1))
	completed(t, f, "other")
	// It is told as soon as it is found, which may be before the task serves.
	e := until(t, events, "the conflict is told", func(e orchestrate.Event) bool {
		return e.Service == "web" && e.Failure != nil && e.Failure.Kind == orchestrate.FailedConflict
	})
	if !strings.Contains(e.Failure.Message, "8081") {
		t.Errorf("failure: got %+v, want a conflict about port 8081", e.Failure)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	completed(t, f, "web")
	if got, want := get(t, "127.0.0.1:8081", "/"), one(t, f, "web").ID+" "; got != want {
		t.Errorf("the port after it was freed: answered by %q, want %q", got, want)
	}
}

// No request is lost while tasks are killed, added, taken away and replaced,
// and the fleet is closed and opened again. One that a killed process had
// begun to answer may be cut off; it is sent again, once.
func TestNoRequestLost(t *testing.T) {
	dir := newFolder(t)
	f := openAt(t, dir)
	defer func() { destroy(t, f) }()
	s := service("web", 2)
	s.Ports[0].Published = 8081
	s.DrainDelay = 200 * time.Millisecond
	up(t, f, s)
	addresses := []string{"127.0.0.1:8081", at(hostIPv4.Addr(), 8081)}
	for _, a := range virtual(t, f, "web") {
		addresses = append(addresses, at(a, 80))
	}
	quit := make(chan struct{})
	var load sync.WaitGroup
	var requests, cut atomic.Int64
	for _, address := range addresses {
		load.Go(func() {
			pace := time.NewTicker(5 * time.Millisecond)
			defer pace.Stop()
			for {
				select {
				case <-quit:
					return
				case <-pace.C:
				}
				_, err := ask(address, "/")
				if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) || err != nil && strings.Contains(err.Error(), "server closed idle connection") {
					// The last is what net/http says of an end before the first byte.
					cut.Add(1)
					_, err = ask(address, "/")
				}
				requests.Add(1)
				if err != nil {
					t.Errorf("%s: %v", time.Now().Format(time.StampMilli), err)
				}
			}
		})
	}
	say := func(what string) { t.Logf("%s: %s", time.Now().Format(time.StampMilli), what) }

	say("killing")
	events := watch(t, f)
	victim := tasks(t, f, "web")[0]
	if err := syscall.Kill(victim.Containers[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, events, "the killed container's successor is ready", func(e orchestrate.Event) bool {
		return e.Task == victim.ID && e.State == orchestrate.Ready && e.Restarts == 1
	})
	for _, n := range []int{4, 2} {
		say("scaling")
		if err := f.Scale(t.Context(), "web", n); err != nil {
			t.Fatal(err)
		}
		completed(t, f, "web")
	}
	say("rolling")
	s.Containers[0].Env = map[string]string{"VERSION": "2"}
	up(t, f, s)
	say("closing")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	say("opening")
	f = openAt(t, dir)
	completed(t, f, "web")
	say("rolling")
	s.Containers[0].Env = map[string]string{"VERSION": "3"}
	up(t, f, s)
	close(quit)
	load.Wait()
	t.Logf("%d requests, %d of them cut off and sent again", requests.Load(), cut.Load())
}
