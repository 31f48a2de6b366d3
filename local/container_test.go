//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

// What a spec says of a container is what its process sees.
func TestContainer(t *testing.T) {
	f := openFleet(t)
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	// An image with users, which one of a single program has not.
	img, err := image.FromFS("orchestrate.test/users:1", fstest.MapFS{
		"program":    {Data: program, Mode: 0o755},
		"etc/passwd": {Data: []byte("root:x:0:0::/:/none\napp:x:1500:1600::/:/none\n"), Mode: 0o644},
		"etc/group":  {Data: []byte("root:x:0:\napp:x:1600:\nplugdev:x:1700:app\n"), Mode: 0o644},
		"work/file":  {Data: []byte("image\n"), Mode: 0o644},
	}, image.Options{Entrypoint: []string{"/program"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Load(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	s := silent("box", "cat=/proc/self/status", "cat=/proc/self/limits", "cat=file",
		"cat=/proc/sys/kernel/hostname", "cat=/etc/resolv.conf", "cat=/etc/hosts", "cat=/proc/self/mountinfo",
		"cat=/proc/sys/net/ipv4/ip_unprivileged_port_start", "bind=:90", "touch=/dev/other", "print=end", "wait")
	s.Hostname = "box"
	s.DNS = orchestrate.DNS{
		Servers: []string{"192.0.2.53"}, Search: []string{"example.test"}, Options: []string{"ndots:3"},
		Hosts: map[string][]string{"db.example.test": {"192.0.2.9"}},
	}
	c := &s.Containers[0]
	c.Image, c.Dir, c.User = img.Ref(), "/work", "app"
	c.Ulimits = []runtime.Ulimit{{Name: "core", Soft: 1024, Hard: 2048}}
	c.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80"}
	c.Devices = []runtime.Device{{Source: "/dev/null", Target: "/dev/other"}}
	c.Security = runtime.Security{ReadOnlyRoot: true, CapDrop: []string{"ALL"}, CapAdd: []string{"CHOWN"}}
	c.Mounts = []orchestrate.Mount{{Target: "/tmp", Tmpfs: &orchestrate.Tmpfs{Size: 3 * orchestrate.MiB, Mode: 0o700}}}
	up(t, f, s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var text strings.Builder
	done := errors.New("that was all")
	err = f.Logs(ctx, "box", "", runtime.LogOptions{Follow: true}, func(l orchestrate.LogLine) error {
		if string(l.Text) == "end" {
			return done
		}
		// So that what the kernel pads is one space.
		fmt.Fprintln(&text, strings.Join(strings.Fields(string(l.Text)), " "))
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatalf("logs: %v; so far:\n%s", err, &text)
	}
	for _, want := range []string{
		"Uid: 1500 1500 1500 1500\n", "Gid: 1600 1600 1600 1600\n", "Groups: 1600 1700\n",
		"CapBnd: 0000000000000001\n", "NoNewPrivs: 1\n", "Seccomp: 2\n",
		"Max core file size 1024 2048 bytes\n", "image\n", "box\n",
		"nameserver 192.0.2.53\n", "search example.test\n", "options ndots:3\n", "192.0.2.9 db.example.test\n",
		" / / ro,", "size=3072k,mode=700", "80\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the container does not see %q; what it sees is\n%s", want, &text)
		}
	}
}

// The stop signal is the container's own, and what ignores it is killed after the
// grace.
func TestStopSignal(t *testing.T) {
	f := openFleet(t)
	s := silent("web", "catch=10", "line=begun", "await", "line=told", "stay")
	s.Containers[0].Readiness = &health.Check{Exec: &health.Exec{Command: []string{"/program", "has=begun"}}, Interval: 20 * time.Millisecond, Failures: 100}
	s.StopGrace = 300 * time.Millisecond
	s.Containers[0].StopSignal = "SIGUSR1"
	s.Containers[0].Mounts = []orchestrate.Mount{{Target: "/data", Volume: "lines"}}
	up(t, f, s)
	if err := f.Remove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	wait(t, f, "web")
	if got, want := lines(t, f), []string{"begun", "told"}; !slices.Equal(got, want) {
		t.Errorf("the container wrote %q, want %q", got, want)
	}
}

// A container that the kernel kills for want of memory says so in its task's
// status and in an event, and is restarted.
func TestOutOfMemory(t *testing.T) {
	f := openFleet(t)
	s := silent("web", "eat=200")
	s.Containers[0].Resources.MemoryLimit = 32 * orchestrate.MiB
	s.Restart = orchestrate.RestartPolicy{Backoff: time.Hour, MaxBackoff: time.Hour, Attempts: -1}
	s.Update.Monitor, s.Update.ProgressDeadline = time.Hour, 2*time.Hour
	events := watch(t, f)
	apply(t, f, s)
	e := until(t, events, "it is out of memory", func(e orchestrate.Event) bool {
		return e.Kind == orchestrate.TaskChanged && e.Service == "web" && e.Failure != nil && e.Failure.Kind == orchestrate.FailedOOM && e.Restarts > 0
	})
	task := one(t, f, "web")
	if task.ID != e.Task || task.Failure == nil || task.Failure.Kind != orchestrate.FailedOOM || !task.Containers[0].OOM {
		t.Errorf("the task: got %+v, want it failed for want of memory", task)
	}
}

// 200 MB of output, as fast as a container can: what is kept are its last lines
// without a gap, and who follows is not held up.
func TestMuchOutput(t *testing.T) {
	const lines = 2_000_000 // of 100 bytes
	f := openFleet(t)
	s := silent("web", fmt.Sprint("flood=", lines), "wait")
	up(t, f, s)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	number := func(l orchestrate.LogLine) int {
		n, err := strconv.Atoi(string(l.Text))
		if err != nil || len(l.Text) != 99 {
			t.Fatalf("a line is %q: %v", l.Text, err)
		}
		return n
	}
	last, gaps := 0, 0
	done := errors.New("that was all")
	err := f.Logs(ctx, "web", "", runtime.LogOptions{Follow: true}, func(l orchestrate.LogLine) error {
		n := number(l)
		switch {
		case n <= last:
			return fmt.Errorf("line %d after line %d", n, last)
		case n > last+1:
			gaps++ // it was slower than the container by the whole bound
		}
		if last = n; n == lines {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatalf("following ended at line %d: %v", last, err)
	}
	t.Logf("who followed was left behind %d times", gaps)
	first := 0
	err = f.Logs(ctx, "web", "", runtime.LogOptions{}, func(l orchestrate.LogLine) error {
		n := number(l)
		if first == 0 {
			first, last = n, n-1
		}
		if n != last+1 {
			return fmt.Errorf("line %d after line %d", n, last)
		}
		last = n
		return nil
	})
	const bound = 48 << 20
	if kept := (lines - first + 1) * 100; err != nil || last != lines || kept < bound*7/8-100 || kept > bound+100 {
		t.Errorf("kept are the lines %d to %d, %v; want the last %d bytes at most, an eighth less at least", first, last, err, bound)
	}
}

// A link that a container makes in a volume leads its mounts nowhere but into its
// own root.
func TestLinkInVolume(t *testing.T) {
	f := openFleet(t)
	outside := t.TempDir()
	mounts := []orchestrate.Mount{{Target: "/data", Volume: "lines"}}
	maker := silent("maker", "link="+outside+" /data/absolute", "link=../../../../../../../.."+outside+" /data/up", "wait")
	maker.Containers[0].Mounts = mounts
	up(t, f, maker)
	s := silent("web", "touch=/data/absolute/file", "touch=/data/up/file", "print=end", "wait")
	s.Containers[0].Mounts = append(mounts,
		orchestrate.Mount{Target: "/data/absolute", Tmpfs: &orchestrate.Tmpfs{Size: orchestrate.MiB}},
		orchestrate.Mount{Target: "/data/up", Volume: "other"},
	)
	apply(t, f, s)
	r := wait(t, f, "web")
	if r.Outcome != orchestrate.RolloutCompleted {
		t.Errorf("outcome: got %v, want completed: the mounts are where the links lead inside; failure %+v", r, r.Failure)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside of the container there is %v, %v; want nothing", left, err)
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mountinfo), filepath.Clean(outside)) {
		t.Errorf("a mount of the container is on the machine's %s (%v)", outside, err)
	}
}

// Every call ends with its context.
func TestContextEndsCalls(t *testing.T) {
	f := openFleet(t)
	up(t, f, service("web", 1))
	sick := service("sick", 1)
	sick.Containers[0].Env = map[string]string{"SICK": "readiness"}
	apply(t, f, sick)
	calls := map[string]func(ctx context.Context) error{
		"Wait": func(ctx context.Context) error { _, err := f.Wait(ctx, "sick"); return err },
		"Watch": func(ctx context.Context) error {
			events, err := f.Watch(ctx)
			if err != nil {
				return err
			}
			for range events {
			}
			return ctx.Err()
		},
		"Logs": func(ctx context.Context) error {
			return f.Logs(ctx, "web", "", runtime.LogOptions{Follow: true}, func(orchestrate.LogLine) error { return nil })
		},
		"Exec": func(ctx context.Context) error {
			_, err := f.Exec(ctx, "web", "", runtime.Exec{Args: []string{"/program", "stay"}})
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want that the context ended", err)
			}
		})
	}
}
