//go:build linux

package containerd

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// testdata/cgroup2 has the files of two cgroups in the forms of the kernel's
// cgroup-v2.rst: web.0 with limits, free.0 without any, and without most files,
// as a cgroup is whose controllers are not enabled.
var recorded = cgroupTree{mount: "testdata/cgroup2", path: "/orchestrate/0123456789ab", unified: true}

func TestStatsOfVersion2(t *testing.T) {
	for id, want := range map[string]runtime.Stats{
		"web.0": {
			CPU: 1234567 * time.Microsecond, Throttled: 250 * time.Millisecond,
			Memory: 52428800 - 8388608, MemoryLimit: 64 << 20, Pids: 17, OOMKills: 2,
			ReadBytes: 1048576 + 4096, WriteBytes: 2097152,
		},
		"free.0": {Memory: 4096},
		"none":   {},
	} {
		got := recorded.statsV2(id)
		if got.At.IsZero() {
			t.Errorf("%s: the stats have no time", id)
		}
		got.At = time.Time{}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", id, got, want)
		}
	}
}

func TestCPUsOfTheMachine(t *testing.T) {
	for set, ok := range map[string]bool{"": true, "0": true, "0-3": true, "1,3": true, "4": false, "0-4": false, "2-9": false} {
		if err := recorded.checkCPUs(set); (err == nil) != ok {
			t.Errorf("CPU set %q where there are 0-3: got %v", set, err)
		}
	}
	// Without cpusets, as here, the machine's own processors count.
	bare := cgroupTree{mount: t.TempDir(), path: "/x", unified: true}
	online, err := os.ReadFile(onlineCPUs)
	if err != nil {
		t.Fatal(err)
	}
	if err := bare.checkCPUs(strings.TrimSpace(string(online))); err != nil {
		t.Errorf("all processors of the machine: got %v", err)
	}
	if err := bare.checkCPUs("8191"); err == nil {
		t.Error("a processor that no machine has: got no error")
	}
}

func TestUpdateOfVersion2(t *testing.T) {
	res, err := recorded.changed(runtime.Resources{Memory: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if res.Memory.Reservation != nil || *res.Memory.Limit != 64<<20 || *res.Pids.Limit != -1 {
		t.Errorf("got %+v: want the limit, no word of a request, and no bound of processes", res)
	}
}

// The cgroup file system of version 2 can be mounted beside version 1, whose
// kernel keeps the controllers: what needs none is tried for real.
func TestRemoveOfVersion2(t *testing.T) {
	mount := t.TempDir()
	if err := unix.Mount("cgroup2", mount, "cgroup2", 0, ""); err != nil {
		t.Fatalf("mount cgroup2: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Error(err)
		}
	})
	tree := cgroupTree{mount: mount, path: "/orchestrate-test-" + strconv.Itoa(os.Getpid()) + "/x", unified: true}
	below := filepath.Join(tree.dir("", "a"), "below", "it")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "echo ready; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("sh said %q, %v", line, err)
	}
	if err := os.WriteFile(filepath.Join(tree.dir("", "a"), "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	tree.remove("a")
	if err := cmd.Wait(); cmd.ProcessState.Sys().(interface{ Signaled() bool }).Signaled() == false {
		t.Errorf("the process in the cgroup ended with %v, want it killed", err)
	}
	if _, err := os.Stat(tree.dir("", "a")); !os.IsNotExist(err) {
		t.Errorf("the cgroup is there (%v)", err)
	}
	tree.removeRoot()
	if _, err := os.Stat(filepath.Dir(filepath.Join(mount, tree.path))); !os.IsNotExist(err) {
		t.Errorf("the cgroup's parents are there (%v)", err)
	}
}
