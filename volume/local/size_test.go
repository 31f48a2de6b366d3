//go:build linux

package local

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/volume"
	"github.com/orchestrate-go/orchestrate/volume/volumetest"
)

// quotaFS mounts a filesystem with project quotas: ext4, or XFS where the kernel
// has no quotas for that. One with neither CONFIG_QFMT_V2 nor CONFIG_XFS_QUOTA
// has nothing to test.
func quotaFS(t *testing.T) string {
	t.Helper()
	point, out := mountNew(t, 64<<20, []string{"mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota"}, "prjquota")
	if point == "" || !quotaOn(point) {
		point, out = mountNew(t, 320<<20, []string{"mkfs.xfs", "-q"}, "prjquota")
	}
	if point == "" || !quotaOn(point) {
		t.Skipf("this kernel has no project quotas, of ext4 (CONFIG_QFMT_V2) or XFS (CONFIG_XFS_QUOTA): %s", out)
	}
	return point
}

// mountNew makes a filesystem in a file and mounts it. When it cannot be
// mounted the folder is empty, and out says why.
func mountNew(t *testing.T, size int64, mkfs []string, options string) (point, out string) {
	t.Helper()
	base := testDir(t)
	image, point := filepath.Join(base, "fs"), filepath.Join(base, "mnt")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, size))
	must(t, os.Mkdir(point, 0o755))
	if text, err := exec.Command(mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", mkfs, err, text)
	}
	if text, err := exec.Command("mount", "-o", "loop,"+options, image, point).CombinedOutput(); err != nil {
		return "", string(text)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(point, 0); err != nil {
			t.Errorf("unmount the filesystem of the test: %v", err)
		}
	})
	return point, ""
}

// fill writes to a volume without CAP_SYS_RESOURCE, which would lift quotas,
// until it is full, and returns how much went in.
func fill(t *testing.T, path string) int64 {
	t.Helper()
	type result struct {
		n   int64
		err error
	}
	results := make(chan result)
	go func() {
		// The thread's capabilities are changed, so it is not used again:
		// the goroutine ends locked to it.
		runtime.LockOSThread()
		var r result
		defer func() { results <- r }()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if r.err = unix.Capget(&header, &caps[0]); r.err != nil {
			return
		}
		caps[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
		if r.err = unix.Capset(&header, &caps[0]); r.err != nil {
			return
		}
		var f *os.File
		if f, r.err = os.Create(filepath.Join(path, "fill")); r.err != nil {
			return
		}
		defer f.Close()
		block := bytes.Repeat([]byte("x"), 64<<10)
		for r.err == nil && r.n < 1<<30 {
			var n int
			n, r.err = f.Write(block)
			r.n += int64(n)
		}
		if r.err == nil {
			r.err = errors.New("a GiB went in")
		}
	}()
	r := <-results
	if !errors.Is(r.err, unix.ENOSPC) && !errors.Is(r.err, unix.EDQUOT) {
		t.Errorf("filling %s ended with %v, want that it is full", path, r.err)
	}
	return r.n
}

// plainFS mounts a tmpfs, which has no project quotas, whatever the temporary
// folder has.
func plainFS(t *testing.T) string {
	t.Helper()
	base := testDir(t)
	must(t, unix.Mount("tmpfs", base, "tmpfs", 0, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(base, 0); err != nil {
			t.Errorf("unmount the filesystem of the test: %v", err)
		}
	})
	return base
}

func only(t *testing.T, d *Driver) volume.Status {
	t.Helper()
	list, err := d.List(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("List = %v, %v; want one volume", list, err)
	}
	return list[0]
}

func TestSizeIsEnforced(t *testing.T) {
	const size = 4 << 20
	for name, c := range map[string]struct {
		dir     func(*testing.T) string
		options map[string]string
		least   int64 // that goes in: an image has its own tables
	}{
		"project quota":   {quotaFS, nil, size},
		"asked for quota": {quotaFS, map[string]string{"size-mode": "quota"}, size},
		"without quota":   {plainFS, nil, size / 2},
		"image":           {testDir, map[string]string{"size-mode": "loop"}, size / 2},
		"tmpfs":           {testDir, map[string]string{"type": "tmpfs"}, size},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustOpen(t, filepath.Join(c.dir(t), "volumes"))
			defer d.Close()
			ctx := t.Context()
			must(t, d.Create(ctx, volume.Volume{Name: "v", Size: size, Options: c.options}))
			m := volume.Mount{Volume: "v", Task: "t"}
			path, err := d.Mount(ctx, m)
			must(t, err)
			if n := fill(t, path); n < c.least || n > size {
				t.Errorf("%d bytes went into a volume of %d, want at least %d and no more than it", n, size, c.least)
			}
			s := only(t, d)
			if !s.Enforced || s.Used < c.least || s.Used > size {
				t.Errorf("Status says enforced %v and %d used, want true and a full volume", s.Enforced, s.Used)
			}
			// Twice the size takes twice as much. An image may need to be
			// unmounted for it.
			err = d.Expand(ctx, "v", 2*size)
			if errors.Is(err, volume.ErrInUse) && d.get("v").kind() == kindLoop {
				must(t, d.Unmount(ctx, m))
				err = d.Expand(ctx, "v", 2*size)
				path, _ = d.Mount(ctx, m)
			}
			must(t, err)
			if n := fill(t, path); n <= size || n > 2*size {
				t.Errorf("%d bytes went into a volume expanded to %d", n, 2*size)
			}
			must(t, d.Unmount(ctx, m))
			must(t, d.Remove(ctx, "v"))
		})
	}
}

// Where nothing can hold a Size, Status says so and the volume is made.
func TestSizeWithoutEnforcement(t *testing.T) {
	ctx := t.Context()
	for name, c := range map[string]struct {
		images bool // whether they can be made
		v      volume.Volume
	}{
		"no e2fsprogs":  {false, volume.Volume{Size: 4 << 20}},
		"too small":     {true, volume.Volume{Size: minImage - 1}},
		"no limit":      {true, volume.Volume{}},
		"asked for":     {true, volume.Volume{Size: 4 << 20, Options: map[string]string{"size-mode": "none"}}},
		"auto by name":  {false, volume.Volume{Size: 4 << 20, Options: map[string]string{"size-mode": "auto"}}},
		"a type as dir": {false, volume.Volume{Size: 4 << 20, Options: map[string]string{"type": "dir"}}},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustOpen(t, filepath.Join(plainFS(t), "volumes"))
			defer d.Close()
			if !d.images {
				t.Fatal("this machine cannot make images: its tests need e2fsprogs and loop devices")
			}
			d.images = c.images
			c.v.Name = "v"
			must(t, d.Create(ctx, c.v))
			if s := only(t, d); s.Enforced || s.Used != -1 {
				t.Errorf("Status says enforced %v and %d used, want false and -1: nothing counts it", s.Enforced, s.Used)
			}
			must(t, d.Remove(ctx, "v"))
		})
	}
	d := mustOpen(t, filepath.Join(plainFS(t), "volumes"))
	defer d.Close()
	var spec *volume.SpecError
	if err := d.Create(ctx, volume.Volume{Name: "q", Size: 1 << 20, Options: map[string]string{"size-mode": "quota"}}); !errors.As(err, &spec) {
		t.Errorf("size-mode quota without quotas = %v, want it refused", err)
	}
}

// What size-mode auto chose for a volume stays, whatever it would choose now:
// also for the next driver, and for what is restored from its snapshots.
func TestAutoIsChosenOnce(t *testing.T) {
	ctx := t.Context()
	for _, image := range []bool{false, true} {
		t.Run(fmt.Sprint("image ", image), func(t *testing.T) {
			dir := filepath.Join(plainFS(t), "volumes")
			d := mustOpen(t, dir)
			d.images = image
			v := volume.Volume{Name: "v", Size: 4 << 20}
			m := volume.Mount{Volume: "v", Task: "t"}
			must(t, d.Create(ctx, v))
			path, err := d.Mount(ctx, m)
			must(t, err)
			must(t, os.WriteFile(filepath.Join(path, "f"), []byte("kept"), 0o600))
			must(t, d.Unmount(ctx, m))
			must(t, d.Close())

			d = mustOpen(t, dir)
			defer d.Close()
			d.images = !image
			must(t, d.Create(ctx, v)) // it is there
			must(t, d.Snapshot(ctx, "v", "s"))
			must(t, d.Restore(ctx, "s", "copy"))
			list, err := d.List(ctx)
			must(t, err)
			if len(list) != 2 {
				t.Fatalf("List = %v, want the volume and its copy", list)
			}
			for _, s := range list {
				if s.Enforced != image {
					t.Errorf("%s: Status says enforced %v, want %v as it was made", s.Name, s.Enforced, image)
				}
				m := volume.Mount{Volume: s.Name, Task: "t"}
				path, err := d.Mount(ctx, m)
				must(t, err)
				if got, err := os.ReadFile(filepath.Join(path, "f")); string(got) != "kept" {
					t.Errorf("%s holds %q, %v; want what was written", s.Name, got, err)
				}
				must(t, d.Unmount(ctx, m))
				must(t, d.Remove(ctx, s.Name))
			}
			must(t, d.RemoveSnapshot(ctx, "s"))
		})
	}
}

func TestQuotaConformance(t *testing.T) {
	quotaFS(t) // skips the whole once
	volumetest.Run(t, func(t *testing.T) volumetest.Harness {
		dir := filepath.Join(quotaFS(t), "volumes")
		return volumetest.Harness{Open: func() (volume.Driver, error) { return Open(Options{Dir: dir}) }}
	})
}

func TestKernelStructs(t *testing.T) {
	if got := unsafe.Sizeof(diskQuota{}); got != 72 {
		t.Errorf("struct if_dqblk has %d bytes, want 72 as in the kernel", got)
	}
	if got := unsafe.Sizeof(fsxAttr{}); got != 28 {
		t.Errorf("struct fsxattr has %d bytes, want 28 as in the kernel", got)
	}
}

// New files are of the project of their folder: what makes a quota hold them.
// XFS keeps projects also where it enforces no quotas.
func TestProjectIsInherited(t *testing.T) {
	point, out := mountNew(t, 320<<20, []string{"mkfs.xfs", "-q"}, "defaults")
	if point == "" {
		t.Skipf("this kernel has no XFS: %s", out)
	}
	point = filepath.Join(point, "data")
	must(t, os.Mkdir(point, 0o755))
	must(t, setProject(point, firstProject+7))
	must(t, os.MkdirAll(filepath.Join(point, "a/b"), 0o755))
	must(t, os.WriteFile(filepath.Join(point, "a/b/c"), nil, 0o600))
	for _, name := range []string{"", "a", "a/b", "a/b/c"} {
		f, err := os.Open(filepath.Join(point, name))
		must(t, err)
		var attr fsxAttr
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsGetXattr, uintptr(unsafe.Pointer(&attr)))
		f.Close()
		if errno != 0 || attr.project != firstProject+7 {
			t.Errorf("%q is of project %d, %v; want %d", name, attr.project, errno, firstProject+7)
		}
	}
}

// A removed volume's project is used again only without its limit and files.
func TestProjectsAreApart(t *testing.T) {
	dir := filepath.Join(quotaFS(t), "volumes")
	d := mustOpen(t, dir)
	ctx := t.Context()
	for i := range 3 {
		v := volume.Volume{Name: fmt.Sprint("v", i), Size: 1 << 20}
		must(t, d.Create(ctx, v))
		path, err := d.Mount(ctx, volume.Mount{Volume: v.Name, Task: "t"})
		must(t, err)
		if n := fill(t, path); n != 1<<20 {
			t.Errorf("%d bytes went into volume %d of a MiB", n, i)
		}
	}
	must(t, d.Unmount(ctx, volume.Mount{Volume: "v1", Task: "t"}))
	must(t, d.Remove(ctx, "v1"))
	must(t, d.Create(ctx, volume.Volume{Name: "free"}))
	path, err := d.Mount(ctx, volume.Mount{Volume: "free", Task: "t"})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(path, "f"), make([]byte, 3<<20), 0o600))
	must(t, d.Close())
	d = mustOpen(t, dir)
	list, err := d.List(ctx)
	must(t, err)
	for _, s := range list {
		if want := s.Size; want > 0 && s.Used != want || s.Name == "free" && s.Used < 3<<20 {
			t.Errorf("%s takes %d bytes, want its own and no other's", s.Name, s.Used)
		}
	}
	must(t, d.Close())
}
