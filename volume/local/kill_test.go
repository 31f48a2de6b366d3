//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/orchestrate-go/orchestrate/volume"
)

// The test binary runs itself as a victim, which works through a script and is
// killed by SIGKILL at its n-th step. For every n, what it leaves must open,
// hold what it had confirmed, and let the script be run again to its end.

const (
	victimEnv = "VOLUME_TEST_VICTIM" // the folder
	stepEnv   = "VOLUME_TEST_STEP"   // at which to die
)

// script is the victim's work. Each line that was confirmed is told by done.
func script(d *Driver, base string, done func(string)) error {
	ctx := context.Background()
	var errs []error
	do := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
			return
		}
		done(what)
	}
	mount := func(m volume.Mount) string {
		path, err := d.Mount(ctx, m)
		do(fmt.Sprintf("mount %s ro=%v", m.Volume, m.ReadOnly), err)
		return path
	}
	image := volume.Volume{Name: "image", Size: 4 << 20, Options: map[string]string{"size-mode": "loop"}}
	do("create dir", d.Create(ctx, volume.Volume{Name: "dir"}))
	do("create image", d.Create(ctx, image))
	for _, name := range []string{"dir", "image"} {
		rw, ro := volume.Mount{Volume: name, Task: "t"}, volume.Mount{Volume: name, Task: "t", ReadOnly: true}
		path := mount(rw)
		do("write "+name, os.WriteFile(filepath.Join(path, "f"), []byte(name), 0o600))
		mount(ro)
		if name == "image" {
			do("snapshot image in use", d.Snapshot(ctx, name, "of-image"))
		}
		do("unmount ro "+name, d.Unmount(ctx, ro))
		do("unmount "+name, d.Unmount(ctx, rw))
	}
	do("snapshot dir", d.Snapshot(ctx, "dir", "of-dir"))
	do("restore dir", d.Restore(ctx, "of-dir", "restored-dir"))
	do("restore image", d.Restore(ctx, "of-image", "restored-image"))
	do("expand image", d.Expand(ctx, "image", 8<<20))
	b := volume.Bind{Source: filepath.Join(base, "host", "sub"), Task: "t", ReadOnly: true}
	_, err := d.Bind(ctx, b)
	do("bind", err)
	do("unbind", d.Unbind(ctx, b))
	do("remove snapshot", d.RemoveSnapshot(ctx, "of-dir"))
	do("remove restored-image", d.Remove(ctx, "restored-image"))
	return errors.Join(errs...)
}

func openFor(base string, step func(string)) (*Driver, error) {
	return Open(Options{Dir: filepath.Join(base, "volumes"), BindRoots: []string{filepath.Join(base, "host")}, step: step})
}

// victim is the killed process; it returns 0 when it got to the end.
func victim() int {
	dieAt, err := strconv.Atoi(os.Getenv(stepEnv))
	if err != nil {
		fmt.Println(err)
		return 2
	}
	n := 0
	d, err := openFor(os.Getenv(victimEnv), func(what string) {
		if n++; n == dieAt {
			fmt.Println("die", what)
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way
		}
	})
	if err == nil {
		err = script(d, os.Getenv(victimEnv), func(what string) { fmt.Println("done", what) })
	}
	if err != nil {
		fmt.Println("failed", err)
		return 2
	}
	return 0
}

func TestKilledAtEveryStep(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; ; n++ {
		died := false
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			base := testDir(t)
			if err := os.MkdirAll(filepath.Join(base, "host", "sub"), 0o755); err != nil {
				t.Fatal(err)
			}
			precious := filepath.Join(base, "host", "sub", "precious")
			if err := os.WriteFile(precious, []byte("of the host"), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), victimEnv+"="+base, stepEnv+"="+strconv.Itoa(n))
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			died = errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
			if err != nil && !died {
				t.Fatalf("the victim: %v\n%s", err, out)
			}
			recovered(t, base, string(out))
			if got, err := os.ReadFile(precious); string(got) != "of the host" {
				t.Errorf("a file of the host that was bound is %q, %v", got, err)
			}
		})
		if !died || t.Failed() {
			if n < 30 {
				t.Errorf("the victim died at %d steps, want more: the script or its steps are gone", n-1)
			}
			t.Logf("crashes: %d, one at each step", n-1)
			return
		}
	}
}

// recovered opens what a victim left, checks it against what the victim said,
// runs the script again and takes everything down.
func recovered(t *testing.T, base, said string) {
	t.Helper()
	ctx := t.Context()
	done := map[string]bool{}
	for line := range strings.Lines(said) {
		if what, ok := strings.CutPrefix(strings.TrimSpace(line), "done "); ok {
			done[what] = true
		}
	}
	d, err := openFor(base, nil)
	if err != nil {
		t.Fatalf("open after the kill: %v\n%s", err, said)
	}
	defer d.Close()
	for _, half := range []string{"tmp", "trash"} {
		if left, err := readNames(d.path(half)); len(left) > 0 || err != nil {
			t.Errorf("%s has %q, %v after Open; want nothing half done\n%s", half, left, err, said)
		}
	}
	list, err := d.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]volume.Status{}
	for _, s := range list {
		have[s.Name] = s
	}
	for _, name := range []string{"dir", "image"} {
		if _, ok := have[name]; done["create "+name] && !ok {
			t.Errorf("volume %s was created and is gone\n%s", name, said)
		}
		if done["write "+name] {
			holds(t, d, name, name, said)
		}
		if done["restore "+name] && !done["remove restored-image"] && have["restored-"+name].Name != "" {
			holds(t, d, "restored-"+name, name, said)
		}
	}
	if done["expand image"] && have["image"].Size != 8<<20 {
		t.Errorf("the image has size %d after it was expanded\n%s", have["image"].Size, said)
	}

	// Run again, as an agent does. What was expanded is another spec now, and
	// what was removed was not there to remove.
	err = script(d, base, func(string) {})
	for _, e := range unjoin(err) {
		if !errors.Is(e, volume.ErrExists) {
			t.Errorf("the script after the kill: %v\n%s", e, said)
		}
	}
	holds(t, d, "image", "image", said)
	if list, err = d.List(ctx); err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if len(s.Tasks) > 0 {
			t.Errorf("volume %s is still mounted by %q\n%s", s.Name, s.Tasks, said)
		}
		if err := d.Remove(ctx, s.Name); err != nil {
			t.Errorf("remove: %v\n%s", err, said)
		}
	}
	if err := d.RemoveSnapshot(ctx, "of-image"); err != nil {
		t.Error(err)
	}
	// Nothing is left but the empty folders and the lock.
	left := map[string]bool{}
	filepath.WalkDir(d.dir, func(path string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(d.dir, path); err != nil || filepath.Dir(rel) != "." {
			left[rel] = true
		}
		return nil
	})
	if len(left) > 0 {
		t.Errorf("files are left: %q\n%s", slices.Sorted(maps.Keys(left)), said)
	}
}

// holds checks a volume's content.
func holds(t *testing.T, d *Driver, name, want, said string) {
	t.Helper()
	m := volume.Mount{Volume: name, Task: "reader", ReadOnly: true}
	path, err := d.Mount(t.Context(), m)
	if err != nil {
		t.Errorf("mount %s after the kill: %v\n%s", name, err, said)
		return
	}
	if got, err := os.ReadFile(filepath.Join(path, "f")); string(got) != want {
		t.Errorf("volume %s holds %q, %v; want %q, which was written\n%s", name, got, err, want, said)
	}
	if err := d.Unmount(t.Context(), m); err != nil {
		t.Error(err)
	}
}

func unjoin(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err != nil {
		return []error{err}
	}
	return nil
}
