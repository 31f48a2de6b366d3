package embed_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/embed"
)

// fullEnv has a member's options in JSON, for the test's program when it is to
// fill the member's disk.
const fullEnv = "ORCHESTRATE_TEST_ETCD_FULL"

// fill starts a member, takes away the rest of its disk, and writes until it
// has ended. What etcd finds fatal must end the member, and not this program,
// which then says so.
func fill(text string) error {
	var opts embed.Options
	if err := json.Unmarshal([]byte(text), &opts); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	m, err := embed.Start(ctx, opts)
	if err != nil {
		return err
	}
	s, err := m.Open(etcd.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(filepath.Dir(opts.Dir), "rest"))
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, zeros{}); err == nil {
		return fmt.Errorf("the disk has no end")
	}
	for ctx.Err() == nil && m.Err() == nil {
		_, _ = s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put("/large", make([]byte, 1<<20))}})
	}
	fmt.Println("ended:", m.Err())
	if err := s.Close(); err != nil {
		return err
	}
	fmt.Println("closed:", m.Close())
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestFullDisk lets a member run out of disk.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=160m"); err != nil {
		if syscall.Geteuid() == 0 {
			t.Fatalf("mount a small disk: %v", err)
		}
		t.Skip("mounting a small disk needs root")
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	opts := options(t, "a", embed.TLS{})
	opts.Dir, opts.Logger = filepath.Join(dir, "a"), nil
	text, err := json.Marshal(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	program := exec.CommandContext(ctx, os.Args[0], "-test.run=^$")
	program.Env = append(os.Environ(), fullEnv+"="+string(text))
	out, err := program.CombinedOutput()
	if err != nil {
		t.Fatalf("the program ended with %v, want it to live on:\n%s", err, out)
	}
	for _, want := range []string{"ended: ", "closed: ", "no space left on device"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the program says nothing of %q:\n%s", want, out)
		}
	}
}
