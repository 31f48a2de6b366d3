//go:build linux

package containerd_test

import (
	"bytes"
	stdcontext "context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
)

const (
	floodLines = 800_000 // about 10 MB
	floodLimit = 1 << 20
)

// flood starts a container that writes far more than is kept, and hangs.
func flood() error {
	rt, err := openChild(containerd.Options{Root: os.Args[1]})
	if err != nil {
		return err
	}
	if err := rt.Start(stdcontext.Background(), runtime.Spec{
		ID: "a", Image: testImage, Args: []string{"sleep=300ms", fmt.Sprint("lines=", floodLines), "ignore"},
		Logs: runtime.LogLimits{MaxBytes: floodLimit / 2, MaxFiles: 1},
	}); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = rt.Wait(stdcontext.Background(), "none")
	for err != nil {
		time.Sleep(time.Hour) // until it is killed
	}
	return nil
}

// diskOf returns how much of the disk the files in a folder take.
func diskOf(t *testing.T, dir string) (used int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			used += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return used
}

// changes returns a call that waits for the next write to a file in a folder, or
// hole in one.
func changes(t *testing.T, dir string) (wait func()) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	return func() {
		if _, err := unix.Read(fd, buf); err != nil {
			t.Fatal(err)
		}
	}
}

// A container that goes on writing when its program is dead does not fill the
// disk, and what is kept are its last lines, all of them.
func TestLogsAreBoundedWithoutProgram(t *testing.T) {
	root := t.TempDir()
	kill := runUntilReady(t, "flood", root)
	dir := filepath.Join(root, "logs", "a")
	wait := changes(t, dir)
	kill()
	out := filepath.Join(dir, "1.out")
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	last := fmt.Appendf(nil, "line %d\n", floodLines)
	end := make([]byte, len(last))
	var most int64
	for written := false; ; wait() {
		used := diskOf(t, dir)
		most = max(most, used)
		if !written {
			f.ReadAt(end, max(fileSize(t, out)-int64(len(end)), 0))
			written = bytes.Equal(end, last)
		}
		if written && used <= floodLimit+64<<10 {
			break
		}
	}
	t.Logf("at most %d KiB of %d were on the disk", most>>10, fileSize(t, out)>>10)
	rt := open(t, root)
	lines := readLogs(t, rt, "a", runtime.LogOptions{})
	kept := 0
	for i, l := range lines {
		if got, want := string(l.Text), fmt.Sprint("line ", floodLines-len(lines)+1+i); got != want {
			t.Fatalf("kept line %d: got %q, want %q: no line may be lost between the first kept and the last", i, got, want)
		}
		kept += len(l.Text) + 1
	}
	if want := floodLimit * 7 / 8; kept < want-maxLine {
		t.Errorf("%d bytes of lines are kept, want at least %d", kept, want)
	}
	if err := rt.Remove(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

// maxLine is more than any line here is long.
const maxLine = 64

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// The guard deletes old runs first, then cuts the longer stream of the newest,
// and touches nothing of a container that is within its bound.
func TestLogGuardCuts(t *testing.T) {
	const block, limit = 64 << 10, 16 * 64 << 10
	dir := t.TempDir()
	write := func(id, name string, blocks int) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, id), 0o700); err != nil {
			t.Fatal(err)
		}
		text := bytes.Repeat([]byte("0123456789abcde\n"), blocks*block/16)
		if err := os.WriteFile(filepath.Join(dir, id, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("within", "1.out", 8)
	write("within", "1.err", 8)
	write("runs", "1.out", 8) // goes
	write("runs", "1.err", 1)
	write("runs", "1.out.idx", 1)
	write("runs", "2.out", 8) // is kept: without the first they are within it
	write("runs", "2.err", 0)
	write("runs", "10.out", 6)
	write("runs", "10.err", 2)
	write("errors", "1.out", 4)
	write("errors", "1.err", 40)
	write("own", "1.out", 40)
	write("own", "1.err", 0)
	if err := os.WriteFile(filepath.Join(dir, "own", "limit"), []byte("2097152\n"), 0o600); err != nil { // 32 blocks
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		if out, err := containerd.CutLogs(dir, limit); err != nil || len(out) > 0 {
			t.Fatalf("cut: %v: %s", err, out)
		}
		for _, c := range []struct {
			file   string
			blocks int64 // that are kept
			size   int64 // -1: it is gone
		}{
			{"within/1.out", 8, 8}, {"within/1.err", 8, 8},
			{"runs/1.out", 0, -1}, {"runs/1.err", 0, -1}, {"runs/1.out.idx", 0, -1},
			{"runs/2.out", 8, 8}, {"runs/10.out", 6, 6}, {"runs/10.err", 2, 2},
			// An eighth less than the bound of 16 and of 32.
			{"errors/1.out", 4, 4}, {"errors/1.err", 10, 40},
			{"own/1.out", 28, 40},
		} {
			path := filepath.Join(dir, c.file)
			info, err := os.Stat(path)
			if c.size < 0 {
				if err == nil {
					t.Errorf("%s is there, want it deleted", c.file)
				}
				continue
			}
			if err != nil {
				t.Error(err)
				continue
			}
			if got := info.Sys().(*syscall.Stat_t).Blocks * 512; got != c.blocks*block || info.Size() != c.size*block {
				t.Errorf("%s: %d bytes long, %d on the disk; want %d and %d", c.file, info.Size(), got, c.size*block, c.blocks*block)
			}
		}
	}
}
