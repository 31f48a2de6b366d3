//go:build linux

package containerd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What starts a shim ends by itself when the shim runs, also while the two are
// looked for.
func TestLostShimIsFoundWhileItStarts(t *testing.T) {
	const shim = `kill -STOP $$` // waits to be killed
	const start = `sh -c "$0" sh -id "$2" &`
	for round := range 40 {
		id := fmt.Sprintf("lost-%d-%d", os.Getpid(), round)
		cmd := exec.Command("sh", "-c", start, shim, "-id", id)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = cmd.Wait() // it may have been killed
		}()
		for range round % 8 { // at another moment of its life each time
			_, _ = os.ReadDir("/proc/self/task")
		}
		if err := killLost(id); err != nil {
			t.Error(err)
		}
		<-ended
		lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range lines {
			if line, err := os.ReadFile(path); err == nil && strings.Contains(string(line), id) {
				_ = killLost(id)
				t.Fatalf("round %d: %q is left", round, line)
			}
		}
	}
}
