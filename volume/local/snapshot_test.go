//go:build linux

package local

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/volume"
)

// A snapshot keeps everything that a filesystem keeps.
func TestCopyTreeKeepsEverything(t *testing.T) {
	base := testDir(t)
	from, to := filepath.Join(base, "from"), filepath.Join(base, "to")
	tree(t, from, []string{"a/file", "b"}, map[string]string{"a/link": "../../outside", "dangling": "none"})
	old := time.Unix(1_000_000_000, 123_000_000)
	must(t, os.Link(filepath.Join(from, "b"), filepath.Join(from, "a/hard")))
	must(t, unix.Mkfifo(filepath.Join(from, "fifo"), 0o640))
	must(t, unix.Mknod(filepath.Join(from, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Chown(filepath.Join(from, "a/file"), 12, 34))
	must(t, unix.Chmod(filepath.Join(from, "a/file"), 0o4751))
	must(t, unix.Lsetxattr(filepath.Join(from, "a/file"), "trusted.test", []byte("x\x00y"), 0))
	must(t, unix.Lsetxattr(filepath.Join(from, "a"), "trusted.dir", []byte("z"), 0))
	sparse := filepath.Join(from, "sparse")
	must(t, os.WriteFile(sparse, nil, 0o600))
	f, err := os.OpenFile(sparse, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("middle"), 32<<20)
	must(t, err)
	must(t, f.Truncate(64<<20))
	must(t, f.Close())
	for _, p := range []string{"a/file", "a", ""} {
		must(t, os.Chtimes(filepath.Join(from, p), old, old))
	}

	must(t, copyTree(t.Context(), from, to))
	must(t, filepath.WalkDir(from, func(path string, _ os.DirEntry, err error) error {
		must(t, err)
		rel, _ := filepath.Rel(from, path)
		var a, b unix.Stat_t
		must(t, unix.Lstat(path, &a))
		if err := unix.Lstat(filepath.Join(to, rel), &b); err != nil {
			t.Errorf("%s is not there: %v", rel, err)
			return nil
		}
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev || a.Nlink != b.Nlink || a.Mtim != b.Mtim {
			t.Errorf("%s is %+v, want %+v", rel, b, a)
		}
		if a.Mode&unix.S_IFMT == unix.S_IFREG && (a.Size != b.Size || b.Blocks > a.Blocks+16) {
			t.Errorf("%s has %d bytes in %d blocks, want %d in about %d: holes stay holes", rel, b.Size, b.Blocks, a.Size, a.Blocks)
		}
		return nil
	}))
	for path, want := range map[string]string{"a/file": "a/file", "a/hard": "b"} {
		if got, err := os.ReadFile(filepath.Join(to, path)); string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", path, got, err, want)
		}
	}
	if got, err := os.Readlink(filepath.Join(to, "a/link")); got != "../../outside" {
		t.Errorf("the link leads to %q, %v; want what it led to", got, err)
	}
	buf := make([]byte, 16)
	if n, err := unix.Lgetxattr(filepath.Join(to, "a/file"), "trusted.test", buf); err != nil || string(buf[:n]) != "x\x00y" {
		t.Errorf("the extended attribute is %q, %v", buf[:max(n, 0)], err)
	}
}

func TestSnapshotInUse(t *testing.T) {
	d := mustOpen(t, testDir(t))
	ctx := t.Context()
	must(t, d.Create(ctx, volume.Volume{Name: "dir"}))
	must(t, d.Create(ctx, volume.Volume{Name: "tmpfs", Options: map[string]string{"type": "tmpfs"}}))
	must(t, d.Create(ctx, volume.Volume{Name: "image", Size: 4 << 20, Options: map[string]string{"size-mode": "loop"}}))
	_, err := d.Mount(ctx, volume.Mount{Volume: "dir", Task: "reader", ReadOnly: true})
	must(t, err)
	must(t, d.Snapshot(ctx, "dir", "read"))
	for _, name := range []string{"dir", "image"} {
		_, err := d.Mount(ctx, volume.Mount{Volume: name, Task: "writer"})
		must(t, err)
	}
	var use *volume.InUseError
	if err := d.Snapshot(ctx, "dir", "written"); !errors.As(err, &use) || len(use.Tasks) != 1 || use.Tasks[0] != "writer" {
		t.Errorf("Snapshot of a directory with a writer = %v, want an *InUseError that names it alone", err)
	}
	var spec *volume.SpecError
	if err := d.Snapshot(ctx, "tmpfs", "t"); !errors.As(err, &spec) {
		t.Errorf("Snapshot of a tmpfs = %v, want a *SpecError", err)
	}
	path := d.path("volumes/image/data/f")
	must(t, os.WriteFile(path, []byte("not yet on the disk"), 0o600))
	must(t, d.Snapshot(ctx, "image", "frozen"))
	must(t, os.WriteFile(path, []byte("thawed"), 0o600)) // would hang on a frozen one
	must(t, d.Restore(ctx, "frozen", "copy"))
	copied, err := d.Mount(ctx, volume.Mount{Volume: "copy", Task: "t"})
	must(t, err)
	if got, err := os.ReadFile(filepath.Join(copied, "f")); string(got) != "not yet on the disk" {
		t.Errorf("the snapshot of an image in use holds %q, %v", got, err)
	}
	for _, m := range []volume.Mount{
		{Volume: "dir", Task: "reader", ReadOnly: true}, {Volume: "dir", Task: "writer"},
		{Volume: "image", Task: "writer"}, {Volume: "copy", Task: "t"},
	} {
		must(t, d.Unmount(ctx, m))
	}
}
