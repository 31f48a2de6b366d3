//go:build linux

package containerd_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
)

func readLogs(t *testing.T, rt *containerd.Runtime, id string, opts runtime.LogOptions) (lines []runtime.LogLine) {
	t.Helper()
	err := rt.Logs(t.Context(), id, opts, func(l runtime.LogLine) error {
		lines = append(lines, l)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// The bound on disk holds, and what is kept are the last lines, all of them.
func TestLogsAreBounded(t *testing.T) {
	root := t.TempDir()
	rt := open(t, root)
	const n = 400_000 // about 4.4 MB
	start(t, rt, runtime.Spec{ID: "a", Args: []string{fmt.Sprintf("lines=%d", n)}, Logs: runtime.LogLimits{MaxBytes: 512 << 10, MaxFiles: 1}})
	if _, err := rt.Wait(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	lines := readLogs(t, rt, "a", runtime.LogOptions{Follow: true})
	if len(lines) == 0 || len(lines) > n/2 {
		t.Fatalf("%d of %d lines are kept: want some, within 1 MiB", len(lines), n)
	}
	first := n - len(lines) + 1
	for i, l := range lines {
		if got, want := string(l.Text), fmt.Sprintf("line %d", first+i); got != want {
			t.Fatalf("kept line %d: got %q, want %q: no line may be lost between the first kept and the last", i, got, want)
		}
	}
	if err := rt.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	var used int64
	filepath.Walk(filepath.Join(root, "logs"), func(_ string, info os.FileInfo, err error) error {
		if err == nil {
			used += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	if used > 1<<20+256<<10 {
		t.Errorf("the logs take %d bytes of disk, want at most 1 MiB and the index", used)
	}
	if got := readLogs(t, rt, "a", runtime.LogOptions{Tail: 3}); len(got) != 3 || string(got[2].Text) != fmt.Sprintf("line %d", n) {
		t.Errorf("Tail of a removed container: got %v", got)
	}
	if err := rt.RemoveLogs(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := rt.Logs(t.Context(), "a", runtime.LogOptions{}, nil); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("after RemoveLogs: got %v, want ErrNotFound", err)
	}
}

// Output that is written while no program has the runtime open is all there.
func TestLogsOverRestart(t *testing.T) {
	root := t.TempDir()
	rt, err := containerd.Open(containerd.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	load(t, rt)
	if err := rt.Start(t.Context(), runtime.Spec{ID: "a", Image: testImage, Args: []string{"print=before", "sleep=200ms", "lines=5000", "error=after"}}); err != nil {
		t.Fatal(err)
	}
	if err := rt.Close(); err != nil {
		t.Fatal(err)
	}
	rt = open(t, root)
	lines := readLogs(t, rt, "a", runtime.LogOptions{Follow: true})
	// What was written while nobody was there has the time of the file alone,
	// so where the line of stderr comes is not said.
	stderr := slices.DeleteFunc(slices.Clone(lines), func(l runtime.LogLine) bool { return l.Stream != "stderr" })
	if len(lines) != 5002 || string(lines[0].Text) != "before" || len(stderr) != 1 {
		t.Errorf("got %d lines, first %q: want 5002, first before, one of stderr", len(lines), lines[0].Text)
	}
	if err := rt.Remove(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

func TestLongLine(t *testing.T) {
	rt := open(t, t.TempDir())
	start(t, rt, runtime.Spec{ID: "a", Args: []string{"long=40000", "print=end"}})
	lines := readLogs(t, rt, "a", runtime.LogOptions{Follow: true})
	if len(lines) != 4 || !lines[0].Partial || !lines[1].Partial || lines[2].Partial || string(lines[3].Text) != "end" {
		t.Fatalf("got %d lines, want three pieces and a line", len(lines))
	}
	if got := len(lines[0].Text) + len(lines[1].Text) + len(lines[2].Text); got != 40000 {
		t.Errorf("the pieces have %d bytes, want 40000", got)
	}
	if strings.Trim(string(lines[2].Text), "x") != "" {
		t.Errorf("the last piece is %q, want only x", lines[2].Text)
	}
}
