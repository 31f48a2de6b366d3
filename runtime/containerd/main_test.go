//go:build linux

package containerd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

// program is the test program, built once for all tests.
var program string

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		program = os.Getenv(childEnv + "_PROGRAM")
		if err := children[name](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "orchestrate-program-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	program = filepath.Join(dir, "program")
	cmd := exec.Command("go", "build", "-o", program, "../runtimetest/testdata/program")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the test program: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	if bareServer != nil {
		// The benchmarks' containerd cannot be stopped.
		if err := bareServer.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	} else if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// testImage is the reference of the test program's image.
const testImage = "orchestrate.test/program:1"

// open opens a runtime on root that has the test image. At the end of the test
// nothing of it is left.
func open(t testing.TB, root string) *containerd.Runtime {
	t.Helper()
	rt, err := containerd.Open(containerd.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(rt.Close(), leftovers(root)); err != nil && !t.Failed() {
			t.Error(err)
		}
	})
	load(t, rt)
	return rt
}

func load(t testing.TB, rt *containerd.Runtime) {
	t.Helper()
	img, err := image.FromBinary(testImage, program, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := img.Reader()
	defer r.Close()
	if _, err := rt.Import(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

func start(t testing.TB, rt *containerd.Runtime, spec runtime.Spec) {
	t.Helper()
	if spec.Image == "" {
		spec.Image = testImage
	}
	if err := rt.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The context of the test has ended by now.
		if err := rt.Remove(context.Background(), spec.ID); err != nil {
			t.Error(err)
		}
	})
}

func discard() *log.Logger { return log.New(io.Discard, "", 0) }
