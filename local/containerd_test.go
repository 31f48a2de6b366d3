//go:build linux

package local

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/bare"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

// envDaemon makes the test binary a containerd, with an image of the program
// that it names.
const envDaemon = "LOCAL_TEST_DAEMON"

// daemon serves containerd until standard input ends, having written where to
// standard output.
func daemon(program string) error {
	img, err := image.FromBinary("daemon:1", program, image.Options{})
	if err != nil {
		return err
	}
	archive := img.Reader()
	defer archive.Close()
	server, err := bare.Start(archive)
	if err != nil {
		return err
	}
	defer server.Close()
	fmt.Println(server.Socket())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// A fleet runs on a containerd that was there before it.
func TestWithContainerd(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	// A daemon finds the shim and runc by its own PATH.
	cmd.Env = append(os.Environ(), envDaemon+"="+binary, "PATH="+os.Getenv("ORCHESTRATE_BIN")+":"+os.Getenv("PATH"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	end, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("containerd: %v", err)
		}
	})
	socket, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("containerd did not say where it listens: %v", err)
	}
	socket = strings.TrimSpace(socket)

	dir := newFolder(t)
	f := openAt(t, dir, WithContainerd(socket))
	closed := false
	t.Cleanup(func() {
		if !closed {
			destroy(t, f)
		}
	})
	s := orchestrate.Service{
		Name: "web", Replicas: 2,
		Template: orchestrate.Template{
			Containers: []orchestrate.Container{{Image: testImage}},
			Ports:      []orchestrate.Port{{Port: 8080, Published: 8088}},
		},
		Update: orchestrate.UpdatePolicy{Monitor: -1},
	}
	if err := f.Apply(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	completed := func() map[string]int {
		t.Helper()
		r, err := f.Wait(t.Context(), "web")
		if err == nil {
			err = r.Err()
		}
		if err != nil {
			t.Fatal(err)
		}
		tasks, err := f.Tasks(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		pids := map[string]int{}
		for _, task := range tasks {
			pids[task.ID] = task.Containers[0].PID
		}
		return pids
	}
	before := completed()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	closed = true
	if f, err = Open(dir, WithContainerd(socket)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { destroy(t, f) })
	after := completed()
	for id, pid := range before {
		if after[id] != pid || pid == 0 {
			t.Errorf("task %s has process %d after Close and Open, want %d adopted", id, after[id], pid)
		}
	}
	if err := f.RemoveImage(t.Context(), testImage); !errors.Is(err, orchestrate.ErrInUse) {
		t.Errorf("removing the image of a service: %v, want in use", err)
	}
}
