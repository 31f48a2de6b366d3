//go:build linux

package local

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

// openAt opens the fleet in dir with the test image.
func openAt(t testing.TB, dir string, opts ...Option) *Fleet {
	t.Helper()
	f, err := Open(dir, append([]Option{WithLogger(testLogger(t))}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	load(t, f, testImage)
	return f
}

// openFleet opens a fleet of the test's own and destroys it after the test.
func openFleet(t testing.TB, opts ...Option) *Fleet {
	t.Helper()
	dir := newFolder(t)
	f := openAt(t, dir, opts...)
	t.Cleanup(func() { destroy(t, f) })
	return f
}

func destroy(t testing.TB, f *Fleet) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := f.Destroy(ctx); err != nil {
		t.Errorf("destroy: %v", err)
	}
}

func load(t testing.TB, f *Fleet, ref string) {
	t.Helper()
	img, err := image.FromBinary(ref, binary, image.Options{Command: []string{"serve"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Load(t.Context(), img); err != nil {
		t.Fatal(err)
	}
}

// testLogger shows what a fleet logs when the test has failed.
func testLogger(t testing.TB) *slog.Logger {
	out := &lateOutput{}
	t.Cleanup(func() {
		if t.Failed() || os.Getenv("ORCHESTRATE_DEBUG") != "" {
			t.Logf("log:\n%s", out)
		}
	})
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type lateOutput struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *lateOutput) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *lateOutput) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// service is a web service of the test program, quick to roll.
func service(name string, replicas int) orchestrate.Service {
	return orchestrate.Service{
		Name: name, Replicas: replicas,
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{
				Image:     testImage,
				Resources: orchestrate.Resources{CPU: 10, Memory: 8 * orchestrate.MiB},
				Readiness: &health.Check{HTTP: &health.HTTP{Port: 8080, Path: "/healthy?readiness"}, Interval: 20 * time.Millisecond},
			}},
			Ports:      []orchestrate.Port{{Port: 8080, Virtual: 80}},
			StopGrace:  5 * time.Second,
			DrainDelay: -1,
		},
		Update: orchestrate.UpdatePolicy{Monitor: -1, ProgressDeadline: time.Minute},
	}
}

// silent is a service that listens nowhere and does what words say.
func silent(name string, words ...string) orchestrate.Service {
	s := service(name, 1)
	s.Containers[0].Readiness, s.Ports = nil, nil
	s.Containers[0].Command = words
	return s
}

func apply(t testing.TB, f *Fleet, objects ...orchestrate.Object) {
	t.Helper()
	if err := f.Apply(t.Context(), objects...); err != nil {
		t.Fatal(err)
	}
}

// wait returns the outcome of a service's rollout.
func wait(t testing.TB, f *Fleet, name string) orchestrate.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := f.Wait(ctx, name)
	if err != nil {
		tasks, _ := f.Tasks(t.Context(), name)
		t.Fatalf("wait for %s: %v; its tasks are %+v", name, err, tasks)
	}
	return r
}

// completed fails the test unless the rollout of a service completes.
func completed(t testing.TB, f *Fleet, name string) {
	t.Helper()
	if r := wait(t, f, name); r.Outcome != orchestrate.RolloutCompleted {
		t.Fatalf("outcome: got %v, want completed; failure %+v", r, r.Failure)
	}
}

// up applies a service and waits until it is.
func up(t testing.TB, f *Fleet, s orchestrate.Service) {
	t.Helper()
	apply(t, f, s)
	completed(t, f, s.Name)
}

func tasks(t testing.TB, f *Fleet, name string) []orchestrate.Task {
	t.Helper()
	list, err := f.Tasks(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// one returns the one task of a service.
func one(t testing.TB, f *Fleet, name string) orchestrate.Task {
	t.Helper()
	list := tasks(t, f, name)
	if len(list) != 1 {
		t.Fatalf("tasks of %s: got %+v, want one", name, list)
	}
	return list[0]
}

// until waits for an event for which f is true. The caller has begun to watch
// before it did what causes the event.
func until(t testing.TB, events <-chan orchestrate.Event, what string, f func(orchestrate.Event) bool) orchestrate.Event {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatalf("events ended before: %s", what)
			}
			if f(e) {
				return e
			}
		case <-limit:
			t.Fatalf("no event within a minute: %s", what)
		}
	}
}

func watch(t testing.TB, f *Fleet) <-chan orchestrate.Event {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	events, err := f.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		for range events {
		}
	})
	return events
}

// virtual returns a service's virtual addresses, IPv4 first.
func virtual(t testing.TB, f *Fleet, name string) []netip.Addr {
	t.Helper()
	st, err := f.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	addrs := slices.Clone(st.Addresses[orchestrate.DefaultNetwork])
	slices.SortFunc(addrs, netip.Addr.Compare)
	if len(addrs) != 2 {
		t.Fatalf("virtual addresses of %s: got %v, want one of IPv4 and one of IPv6", name, addrs)
	}
	return addrs
}

func at(addr netip.Addr, port uint16) string { return netip.AddrPortFrom(addr, port).String() }

// client makes a connection for each request, so that each is balanced.
var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// ask returns the answer of the test program.
func ask(address, path string) (string, error) {
	resp, err := client.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s%s: status %s: %s", address, path, resp.Status, body)
	}
	return string(body), err
}

func get(t testing.TB, address, path string) string {
	t.Helper()
	text, err := ask(address, path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// answers asks an address n times and returns who answered how often.
func answers(t testing.TB, address string, n int) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for range n {
		who, _, _ := strings.Cut(get(t, address, "/"), " ")
		counts[who]++
	}
	return counts
}
