//go:build linux || darwin

package bolt_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/store/bolt"
)

// A process that was killed while it started another one leaves a child that holds
// the lock until it executes its program.
func TestOpenWaitsForADeadProcessesChild(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(held.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	// Not before Open has been refused once: bbolt tries every 50 ms.
	let := time.AfterFunc(150*time.Millisecond, func() { held.Close() })
	defer let.Stop()
	open(t, path)
}
