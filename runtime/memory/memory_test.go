package memory_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, rt *memory.Runtime, id, image string) {
	t.Helper()
	if _, err := rt.Pull(t.Context(), image, runtime.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := rt.Start(t.Context(), runtime.Spec{ID: id, Image: image}); err != nil {
		t.Fatal(err)
	}
}

func TestLifeInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := memory.New(memory.Options{})
		defer rt.Close()
		rt.SetImage("job", memory.Image{PullTime: time.Minute, Program: memory.Exits(time.Hour, 3)})
		began := time.Now()
		start(t, rt, "a", "job")
		exit, err := rt.Wait(t.Context(), "a")
		if err != nil || exit.Code != 3 {
			t.Errorf("Wait: got %v, %v; want exit code 3", exit, err)
		}
		if got, want := exit.At.Sub(began), time.Hour+time.Minute; got != want {
			t.Errorf("pulled and ran for %v of virtual time, want %v", got, want)
		}
	})
}

func TestStopTime(t *testing.T) {
	for _, test := range []struct {
		name    string
		program memory.Program
		kill    runtime.Signal
		code    int
		after   time.Duration
	}{
		{"at once", memory.Program{}, runtime.SIGTERM, 143, 0},
		{"graceful", memory.Program{StopTime: 5 * time.Second, StopCode: 7}, runtime.SIGTERM, 7, 5 * time.Second},
		{"killed", memory.Program{StopTime: -1}, runtime.SIGKILL, 137, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rt := memory.New(memory.Options{Program: test.program})
				defer rt.Close()
				start(t, rt, "a", "x")
				began := time.Now()
				if err := rt.Kill(t.Context(), "a", test.kill); err != nil {
					t.Fatal(err)
				}
				exit, err := rt.Wait(t.Context(), "a")
				if err != nil || exit.Code != test.code || exit.At.Sub(began) != test.after {
					t.Errorf("got %v after %v, %v; want code %d after %v", exit, exit.At.Sub(began), err, test.code, test.after)
				}
			})
		})
	}
}

func TestIgnoredSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := memory.New(memory.Options{Program: memory.Program{StopTime: -1}})
		defer rt.Close()
		start(t, rt, "a", "x")
		rt.Kill(t.Context(), "a", runtime.SIGTERM)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, err := rt.Wait(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an ignored SIGTERM: Wait got %v, want the deadline", err)
		}
	})
}

func TestFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := memory.New(memory.Options{})
		defer rt.Close()
		boom := errors.New("boom")
		for _, done := range []bool{false, true} {
			id := fmt.Sprint("a", done)
			rt.SetFault(nil)
			rt.Pull(t.Context(), "x", runtime.PullOptions{})
			rt.SetFault(func(op memory.Op) error {
				if op.Method == "Start" && op.Done == done {
					return boom
				}
				return nil
			})
			if err := rt.Start(t.Context(), runtime.Spec{ID: id, Image: "x"}); !errors.Is(err, boom) {
				t.Errorf("Start: got %v, want the fault", err)
			}
			rt.SetFault(nil)
			list, _ := rt.List(t.Context(), nil)
			if got := len(list) == 1; got != done {
				t.Errorf("fault with Done=%v: container exists is %v", done, got)
			}
		}
	})
}

func TestOOMAndCrash(t *testing.T) {
	rt := memory.New(memory.Options{})
	defer rt.Close()
	start(t, rt, "a", "x")
	start(t, rt, "b", "x")
	rt.OOM("a")
	rt.Crash("b", 9)
	if exit, _ := rt.Wait(t.Context(), "a"); !exit.OOMKilled || exit.Code != 137 {
		t.Errorf("OOM: got %v", exit)
	}
	if exit, _ := rt.Wait(t.Context(), "b"); exit.OOMKilled || exit.Code != 9 {
		t.Errorf("Crash: got %v", exit)
	}
}

func TestPullErrors(t *testing.T) {
	rt := memory.New(memory.Options{Strict: true})
	defer rt.Close()
	rt.SetImage("reg/private", memory.Image{Credentials: runtime.Credentials{Username: "u", Password: "p"}})
	rt.SetImage("broken", memory.Image{PullErr: context.DeadlineExceeded})
	for ref, want := range map[string]error{
		"missing":     runtime.ErrImageNotFound,
		"reg/private": runtime.ErrUnauthorized,
		"broken":      context.DeadlineExceeded,
	} {
		if _, err := rt.Pull(t.Context(), ref, runtime.PullOptions{}); !errors.Is(err, want) {
			t.Errorf("Pull(%q): got %v, want %v", ref, err, want)
		}
	}
	creds := func(_ context.Context, host string) (runtime.Credentials, error) {
		if host != "reg" {
			t.Errorf("credentials asked for host %q, want reg", host)
		}
		return runtime.Credentials{Username: "u", Password: "p"}, nil
	}
	if _, err := rt.Pull(t.Context(), "reg/private", runtime.PullOptions{Credentials: creds}); err != nil {
		t.Error(err)
	}
}

func TestLogsFollowToTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := memory.New(memory.Options{Program: memory.Program{
			Life: 10 * time.Second,
			Output: []memory.Output{
				{Text: "one"}, {After: time.Second, Text: "two", Stream: "stderr"}, {After: 9 * time.Second, Text: "three"},
			},
		}})
		defer rt.Close()
		start(t, rt, "a", "x")
		var got string
		err := rt.Logs(t.Context(), "a", runtime.LogOptions{Follow: true}, func(l runtime.LogLine) error {
			got += l.Stream + ":" + string(l.Text) + " "
			return nil
		})
		if want := "stdout:one stderr:two stdout:three "; got != want || err != nil {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	})
}

func Example() {
	ctx := context.Background()
	rt := memory.New(memory.Options{})
	defer rt.Close()
	rt.SetImage("job:1", memory.Image{Program: memory.Exits(0, 3)})
	if _, err := rt.Pull(ctx, "job:1", runtime.PullOptions{}); err != nil {
		fmt.Println(err)
	}
	if err := rt.Start(ctx, runtime.Spec{ID: "job.1", Image: "job:1"}); err != nil {
		fmt.Println(err)
	}
	exit, err := rt.Wait(ctx, "job.1")
	fmt.Println(exit, err)
	// Output: exit code 3 <nil>
}
