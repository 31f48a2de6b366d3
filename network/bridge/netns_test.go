//go:build linux

package bridge

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

func TestNamespace(t *testing.T) {
	w := newWorld(t)
	path, err := w.d.Create(t.Context(), "a", map[string]string{"net.core.somaxconn": "321", "net/ipv4/ip_unprivileged_port_start": "0"})
	if err != nil {
		t.Fatal(err)
	}
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close() //nolint:errcheck // read-only
	for name, want := range map[string]string{"net.core.somaxconn": "321", "net.ipv4.ip_unprivileged_port_start": "0", "net.ipv6.conf.default.accept_ra": "0"} {
		err := inside(ns, func() error {
			got, err := os.ReadFile(sysctlPath(name))
			if err == nil && string(got) != want+"\n" {
				t.Errorf("sysctl %s is %q, want %s", name, got, want)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	// The loopback works.
	w.serve(ns, "a", 80)
	for _, to := range []string{"127.0.0.1:80", "[::1]:80"} {
		if _, _, err := ask(ns, "tcp", to); err != nil {
			t.Errorf("%s in a new namespace: %v", to, err)
		}
	}
	// A sysctl that is none leaves nothing.
	if _, err := w.d.Create(t.Context(), "b", map[string]string{"net.core.no_such_thing": "1"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Create with an unknown sysctl = %v, want fs.ErrNotExist", err)
	}
	if ids, err := w.d.List(t.Context()); err != nil || len(ids) != 1 {
		t.Errorf("List = %v, %v, want [a]", ids, err)
	}
	// A file without a namespace, as after a reboot, is none.
	stale := filepath.Join(w.opts.Dir, "netns", "stale")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if ids, err := w.d.List(t.Context()); err != nil || len(ids) != 1 {
		t.Errorf("List with a stale file = %v, %v, want [a]", ids, err)
	}
	if made, err := w.d.Create(t.Context(), "stale", nil); err != nil || !isNamespace(made) {
		t.Errorf("Create over a stale file = %q, %v, want a namespace", made, err)
	}
}

// After everything that changes namespaces, also what fails in the middle, no
// thread of the program is left in another one.
func TestThreadsComeHome(t *testing.T) {
	home, err := os.Readlink(threadNetNS)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.ensure(front)
	for range 5 {
		w.task("a")
		if _, err := w.d.Create(t.Context(), "b", map[string]string{"net.core.no_such_thing": "1"}); err == nil {
			t.Fatal("Create with an unknown sysctl succeeds")
		}
		func() {
			defer func() {
				if r := recover(); r != "boom" {
					t.Errorf("a panic inside came out as %v", r)
				}
			}()
			_ = inside(w.hostNS, func() error { panic("boom") })
		}()
	}
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		at, err := os.Readlink(thread)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has just ended
		}
		if err != nil || at != home {
			t.Errorf("%s is %s, %v, want %s", thread, at, err, home)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for field, options := range map[string]Options{
		"id":  {ID: "a/b", Dir: dir},
		"dir": {ID: "a"},
	} {
		var wrong *network.ConfigError
		if _, err := Open(options); !errors.As(err, &wrong) || wrong.Field != field {
			t.Errorf("Open(%+v) = %v, want a *ConfigError about %s", options, err, field)
		}
	}
	w := newWorld(t)
	if _, err := Open(w.opts); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("Open of a folder that is open = %v, want EWOULDBLOCK", err)
	}
	w.ensure(front)
	if err := errors.Join(w.d.Close(), w.d.Close()); err != nil {
		t.Errorf("Close twice = %v", err)
	}
	for name, err := range map[string]error{
		"Ensure":  w.d.Ensure(t.Context(), front),
		"Attach":  func() error { _, err := w.d.Attach(t.Context(), network.Attachment{}); return err }(),
		"Program": w.d.Program(t.Context(), nil),
		"List":    func() error { _, err := w.d.List(t.Context()); return err }(),
		"Purge":   w.d.Purge(t.Context()),
	} {
		if !errors.Is(err, network.ErrClosed) {
			t.Errorf("%s after Close = %v, want ErrClosed", name, err)
		}
	}
	w.open()
}

func TestIntervalsMerge(t *testing.T) {
	got := intervals([]span{{Prefix: netip.MustParsePrefix("10.1.1.0/24")}, {Prefix: netip.MustParsePrefix("10.1.0.0/24")}, {Prefix: netip.MustParsePrefix("10.2.0.0/16")}})
	want := []struct {
		key []byte
		end bool
	}{{[]byte{10, 1, 0, 0}, false}, {[]byte{10, 1, 2, 0}, true}, {[]byte{10, 2, 0, 0}, false}, {[]byte{10, 3, 0, 0}, true}}
	if len(got) != len(want) {
		t.Fatalf("got %d elements, want %d: neighbours are one range", len(got), len(want))
	}
	for i, e := range got {
		if string(e.Key) != string(want[i].key) || e.IntervalEnd != want[i].end {
			t.Errorf("element %d is %v (end %v), want %v (end %v)", i, e.Key, e.IntervalEnd, want[i].key, want[i].end)
		}
	}
}
