//go:build linux

package local

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/volume"
)

func TestOptionsRefused(t *testing.T) {
	d := mustOpen(t, testDir(t))
	for field, c := range map[string]volume.Volume{
		"options.tpye":      {Options: map[string]string{"tpye": "dir"}},
		"options.type":      {Options: map[string]string{"type": "nfs"}},
		"options.size-mode": {Options: map[string]string{"type": "tmpfs", "size-mode": "loop"}, Size: 1 << 20},
		"options.uid":       {Options: map[string]string{"uid": "root"}},
		"options.gid":       {Options: map[string]string{"gid": "4294967295"}},
		"options.mode":      {Options: map[string]string{"mode": "10000"}},
		"size":              {Options: map[string]string{"size-mode": "loop"}},
	} {
		c.Name = "v"
		err := d.Create(t.Context(), c)
		var spec *volume.SpecError
		if !errors.As(err, &spec) || spec.Field != field {
			t.Errorf("%+v: %v, want a *SpecError of %s", c, err, field)
		}
	}
	if list, err := d.List(t.Context()); len(list) > 0 || err != nil {
		t.Errorf("List = %v, %v; want nothing made", list, err)
	}
}

func TestOwnerAndMode(t *testing.T) {
	base := testDir(t)
	d := mustOpen(t, base)
	ctx := t.Context()
	for name, options := range map[string]map[string]string{
		"dir":   {"size-mode": "none"},
		"image": {"size-mode": "loop"},
		"tmpfs": {"type": "tmpfs"},
	} {
		options["uid"], options["gid"], options["mode"] = "1234", "4294967294", "3770"
		must(t, d.Create(ctx, volume.Volume{Name: name, Size: 2 << 20, Options: options}))
		m := volume.Mount{Volume: name, Task: "t"}
		path, err := d.Mount(ctx, m)
		must(t, err)
		info, err := os.Stat(path)
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		if st.Uid != 1234 || st.Gid != 4294967294 || st.Mode&0o7777 != 0o3770 {
			t.Errorf("%s: the root belongs to %d:%d with mode %o, want 1234:4294967294 and 3770", name, st.Uid, st.Gid, st.Mode&0o7777)
		}
		if names, err := readNames(path); len(names) > 0 || err != nil {
			t.Errorf("%s: a new volume holds %q, %v; want nothing", name, names, err)
		}
		must(t, os.Chmod(path, 0o700)) // a container's own change stays
		must(t, d.Unmount(ctx, m))
		path, err = d.Mount(ctx, m)
		must(t, err)
		if info, err = os.Stat(path); name != "tmpfs" && info.Mode().Perm() != 0o700 {
			t.Errorf("%s: the mode is %v, %v after mounting again, want what the container set", name, info.Mode(), err)
		}
		must(t, d.Unmount(ctx, m))
		must(t, d.Remove(ctx, name))
	}
}

func TestReadOnlyIsHeldByTheKernel(t *testing.T) {
	d := mustOpen(t, testDir(t))
	ctx := t.Context()
	for name, options := range map[string]map[string]string{"dir": {"size-mode": "none"}, "image": {"size-mode": "loop"}} {
		must(t, d.Create(ctx, volume.Volume{Name: name, Size: 2 << 20, Options: options}))
		m := volume.Mount{Volume: name, Task: "t", ReadOnly: true}
		path, err := d.Mount(ctx, m)
		must(t, err)
		if err := os.WriteFile(filepath.Join(path, "f"), nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: writing by a read-only path = %v, want EROFS", name, err)
		}
		must(t, d.Unmount(ctx, m))
		must(t, d.Remove(ctx, name))
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := testDir(t)
	d := mustOpen(t, dir)
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second Open = %v, want ErrLocked", err)
	}
	must(t, d.Create(t.Context(), volume.Volume{Name: "v"}))
	must(t, d.Close())
	must(t, d.Close())
	record := filepath.Join(dir, "volumes", "v", "volume.json")
	must(t, os.WriteFile(record, []byte("{"), 0o600))
	var corrupt *CorruptError
	if _, err := Open(Options{Dir: dir}); !errors.As(err, &corrupt) || corrupt.Path != record {
		t.Errorf("Open with a broken record = %v, want a *CorruptError that names it", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "volumes", "v", "data")); err != nil {
		t.Errorf("the data beside a broken record is gone: %v", err)
	}
	for _, opts := range []Options{{}, {Dir: dir, BindRoots: []string{"srv"}}} {
		if _, err := Open(opts); err == nil {
			t.Errorf("Open(%+v) succeeded, want it refused", opts)
		}
	}
}

// An image that a process still works in is not removed under its feet.
func TestBusyImage(t *testing.T) {
	d := mustOpen(t, testDir(t))
	ctx := t.Context()
	must(t, d.Create(ctx, volume.Volume{Name: "v", Size: 2 << 20, Options: map[string]string{"size-mode": "loop"}}))
	m := volume.Mount{Volume: "v", Task: "t"}
	path, err := d.Mount(ctx, m)
	must(t, err)
	f, err := os.Create(filepath.Join(path, "open"))
	must(t, err)
	if err := d.Unmount(ctx, m); !errors.Is(err, unix.EBUSY) {
		t.Errorf("Unmount of an image with an open file = %v, want EBUSY", err)
	}
	if err := d.Remove(ctx, "v"); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("Remove of it = %v, want ErrInUse", err)
	}
	must(t, f.Close())
	must(t, d.Unmount(ctx, m))
	must(t, d.Remove(ctx, "v"))
}

// A mount out of sight, such as in the namespace of a container that is still
// ending, keeps the image attached. Mounting again must find that and not
// attach the image twice, which would destroy its filesystem.
func TestImageHeldElsewhere(t *testing.T) {
	base := testDir(t)
	d, err := Open(Options{Dir: filepath.Join(base, "volumes"), patience: time.Millisecond})
	must(t, err)
	defer d.Close()
	ctx := t.Context()
	must(t, d.Create(ctx, volume.Volume{Name: "v", Size: 2 << 20, Options: map[string]string{"size-mode": "loop"}}))
	m := volume.Mount{Volume: "v", Task: "t"}
	path, err := d.Mount(ctx, m)
	must(t, err)
	elsewhere := filepath.Join(base, "elsewhere")
	must(t, os.Mkdir(elsewhere, 0o755))
	must(t, unix.Mount(path, elsewhere, "", unix.MS_BIND, ""))
	must(t, d.Unmount(ctx, m))
	must(t, os.WriteFile(filepath.Join(elsewhere, "late"), []byte("late"), 0o600))
	for what, err := range map[string]error{
		"Snapshot": d.Snapshot(ctx, "v", "s"), "Expand": d.Expand(ctx, "v", 4<<20),
	} {
		if !errors.Is(err, unix.EBUSY) {
			t.Errorf("%s of an image that is mounted elsewhere = %v, want EBUSY: it would not be whole", what, err)
		}
	}
	path, err = d.Mount(ctx, m)
	must(t, err)
	if got, err := os.ReadFile(filepath.Join(path, "late")); string(got) != "late" {
		t.Errorf("mounted again, the image holds %q, %v; want what was written elsewhere", got, err)
	}
	if loops := loopsBelow(t, base); len(loops) != 1 {
		t.Errorf("the image is attached to %q, want to one device", loops)
	}
	must(t, unix.Unmount(elsewhere, 0))
	must(t, d.Unmount(ctx, m))
	must(t, d.Remove(ctx, "v"))
}
