//go:build linux

package local

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/volume"
)

// volumeNames lists the volumes as NAMESPACE/NAME.
func volumeNames(t testing.TB, f *Fleet) (names []string) {
	t.Helper()
	list, err := f.Volumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		names = append(names, v.Namespace+"/"+v.Name)
	}
	return names
}

// A volume is listed with its task, cannot be removed while the task has it,
// and stays after its service until it is removed.
func TestVolumes(t *testing.T) {
	f := openFleet(t)
	const size = 2 * orchestrate.MiB // less than fill writes
	s := silent("web", "wait")
	s.Containers[0].Mounts = []orchestrate.Mount{{Target: "/data", Volume: "my.data"}, {Target: "/rest", Volume: "rest"}}
	s.Volumes = []volume.Volume{{Name: "my.data", Size: size}}
	up(t, f, s)
	other := silent("web", "wait")
	other.Namespace = "other"
	other.Containers[0].Mounts = []orchestrate.Mount{{Target: "/data", Volume: "my.data"}}
	apply(t, f, other)
	completed(t, f, "other/web")

	task := one(t, f, "web").ID
	list, err := f.Volumes(t.Context())
	if err != nil || len(list) != 3 {
		t.Fatalf("Volumes: got %+v, %v; want three", list, err)
	}
	got := list[0]
	if got.Namespace != "default" || got.Name != "my.data" || got.Size != size || !slices.Equal(got.Tasks, []string{task}) {
		t.Errorf("Volumes: got %+v, want default/my.data of %d bytes with task %s", got, size, task)
	}
	// By default a Size holds.
	if code, out := run(t, f, "web", "fill=/data/big"); !got.Enforced || code == 0 || !strings.Contains(out, "no space left") {
		t.Errorf("filling the volume: got enforced %v, exit code %d and %q, want no space left", got.Enforced, code, out)
	}

	var use *volume.InUseError
	for _, name := range []string{"my.data", "default/my.data"} {
		err := f.RemoveVolume(t.Context(), name)
		if !errors.Is(err, volume.ErrInUse) || !errors.As(err, &use) || use.Volume != "default/my.data" || !slices.Equal(use.Tasks, []string{task}) {
			t.Errorf("RemoveVolume %q in use: got %v, want an InUseError of default/my.data that names task %s", name, err, task)
		}
	}
	for _, name := range []string{"none", "other/rest", "default.my.data", "my.data/", "", "a/b/c"} {
		if err := f.RemoveVolume(t.Context(), name); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("RemoveVolume %q: got %v, want ErrNotFound", name, err)
		}
	}

	if err := f.Remove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	wait(t, f, "web")
	if got, want := volumeNames(t, f), []string{"default/my.data", "default/rest", "other/my.data"}; !slices.Equal(got, want) {
		t.Errorf("volumes after their service: got %q, want %q", got, want)
	}
	if err := f.RemoveVolume(t.Context(), "my.data"); err != nil {
		t.Errorf("RemoveVolume after its service: %v", err)
	}
	if got, want := volumeNames(t, f), []string{"default/rest", "other/my.data"}; !slices.Equal(got, want) {
		t.Errorf("volumes after one was removed: got %q, want %q", got, want)
	}
	if _, err := os.Stat(filepath.Join(f.dir, "volumes", "volumes", "default.my.data")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of a removed volume: got %v, want it gone", err)
	}
	if err := f.RemoveVolume(t.Context(), "my.data"); !errors.Is(err, orchestrate.ErrNotFound) {
		t.Errorf("RemoveVolume again: got %v, want ErrNotFound", err)
	}
}

// A closed fleet's folder may be another's: its volumes are let alone.
func TestVolumesOfClosedFleet(t *testing.T) {
	dir := newFolder(t)
	f := openAt(t, dir)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	defer destroy(t, openAt(t, dir))
	if _, err := f.Volumes(t.Context()); !errors.Is(err, orchestrate.ErrClosed) {
		t.Errorf("Volumes of a closed fleet: got %v, want ErrClosed", err)
	}
	if err := f.RemoveVolume(t.Context(), "v"); !errors.Is(err, orchestrate.ErrClosed) {
		t.Errorf("RemoveVolume of a closed fleet: got %v, want ErrClosed", err)
	}
}
