//go:build linux

package containerd_test

import (
	stdcontext "context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/containerd"
)

// held starts a container that is held and one that is not, and hangs.
func held() error {
	rt, err := openChild(containerd.Options{Root: os.Args[1]})
	if err != nil {
		return err
	}
	ctx := stdcontext.Background()
	if err := rt.Hold(ctx, 3*time.Second); err != nil {
		return err
	}
	for _, spec := range []runtime.Spec{
		{ID: "held", Image: testImage, Args: []string{"ignore"}, Labels: map[string]string{runtime.LabelHeld: "7"}},
		{ID: "free", Image: testImage, Args: []string{"ignore"}},
	} {
		if err := rt.Start(ctx, spec); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	_, err = rt.Wait(ctx, "none")
	for err != nil {
		time.Sleep(time.Hour) // until it is killed
	}
	return nil
}

// What is held ends in time though the program that held it is dead, and what is
// not runs on.
func TestHeldWithoutProgram(t *testing.T) {
	root := t.TempDir()
	runUntilReady(t, "held", root)()
	rt := open(t, root)
	list, err := rt.List(t.Context(), nil)
	if err != nil || len(list) != 2 || list[0].State != runtime.Running || list[1].State != runtime.Running {
		t.Fatalf("after the kill: got %+v, %v; want both containers running", list, err)
	}
	// Nobody calls Hold here: it is the guard of the dead program that acts.
	exit, err := rt.Wait(t.Context(), "held")
	if err != nil || exit.Code != 128+int(runtime.SIGKILL) {
		t.Errorf("the held container: got %v, %v; want it killed", exit, err)
	}
	list, err = rt.List(t.Context(), nil)
	if err != nil || len(list) != 2 || list[0].ID != "free" || list[0].State != runtime.Running {
		t.Errorf("after the end: got %+v, %v; want the other running", list, err)
	}
	for _, id := range []string{"held", "free"} {
		if err := rt.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}
