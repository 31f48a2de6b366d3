package volumetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/orchestrate-go/orchestrate/volume"
)

// Harness is how the suite uses a driver.
type Harness struct {
	// Open opens the driver over storage that is empty at the first call.
	// Later calls open it again over the same storage, as after a restart of
	// the program; one that is an [io.Closer] is closed before.
	Open func() (volume.Driver, error)

	// Write and Read access a file of a volume at the path that Mount
	// returned. By default they are those of package os.
	Write func(path, name string, data []byte) error
	Read  func(path, name string) ([]byte, error)

	// Options are given to every volume that the suite makes, and Size to
	// those that need one (default 8 MiB).
	Options map[string]string
	Size    int64

	// BindSource is a path that may be bound, and BindOutside one that may
	// not. Without them Bind is not tested.
	BindSource, BindOutside string
}

// T is what a case needs of [testing.T].
type T interface {
	Helper()
	Context() context.Context
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Case is one part of the suite.
type Case struct {
	Name string
	Run  func(t T, h Harness)
}

// Run runs the suite, with a harness for each case.
func Run(t *testing.T, harness func(t *testing.T) Harness) {
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) { c.Run(t, harness(t)) })
	}
}

// Cases returns the parts of the suite.
func Cases() []Case {
	return []Case{
		{"CreateIsIdempotent", with(createIsIdempotent)},
		{"CreateRefusesBadNames", with(createRefusesBadNames)},
		{"CreateRefusesAnotherSpec", with(createRefusesAnotherSpec)},
		{"DataOutlivesTasks", with(dataOutlivesTasks)},
		{"VolumesAreApart", with(volumesAreApart)},
		{"MountIsIdempotent", with(mountIsIdempotent)},
		{"MountOfUnknown", with(mountOfUnknown)},
		{"UnmountIsIdempotent", with(unmountIsIdempotent)},
		{"ReadOnly", with(readOnly)},
		{"RemoveWhileInUse", with(removeWhileInUse)},
		{"RemoveDeletesData", with(removeDeletesData)},
		{"Exclusive", with(exclusive)},
		{"ListIsSortedAndComplete", with(listIsSortedAndComplete)},
		{"Reopen", with(reopen)},
		{"CancelledContext", with(cancelledContext)},
		{"Concurrent", with(concurrent)},
		{"Snapshot", with(snapshot)},
		{"Expand", with(expand)},
		{"Bind", with(bind)},
		{"Claim", with(claim)},
	}
}

// driver is one under test, with calls that fail the test.
type driver struct {
	T
	volume.Driver
	h Harness
}

func with(f func(d *driver)) func(T, Harness) {
	return func(t T, h Harness) {
		t.Helper()
		if h.Write == nil {
			h.Write = func(path, name string, data []byte) error {
				return os.WriteFile(filepath.Join(path, name), data, 0o600)
			}
		}
		if h.Read == nil {
			h.Read = func(path, name string) ([]byte, error) { return os.ReadFile(filepath.Join(path, name)) }
		}
		if h.Size == 0 {
			h.Size = 8 << 20
		}
		d := &driver{T: t, h: h}
		d.open()
		defer d.cleanUp()
		f(d)
	}
}

func (d *driver) open() {
	d.Helper()
	var err error
	if d.Driver, err = d.h.Open(); err != nil {
		d.Fatalf("Open: %v", err)
	}
}

func (d *driver) reopen() {
	d.Helper()
	d.close()
	d.open()
}

func (d *driver) close() {
	d.Helper()
	if c, ok := d.Driver.(io.Closer); ok {
		if err := c.Close(); err != nil {
			d.Errorf("Close: %v", err)
		}
	}
}

// cleanUp takes down what a case left, so that even one that failed leaves no
// mount behind.
func (d *driver) cleanUp() {
	d.Helper()
	ctx := context.WithoutCancel(d.Context())
	list, err := d.List(ctx)
	if err != nil {
		d.Errorf("List at the end: %v", err)
	}
	for _, s := range list {
		for _, task := range s.Tasks {
			for _, ro := range []bool{false, true} {
				if err := d.Unmount(ctx, volume.Mount{Volume: s.Name, Task: task, ReadOnly: ro}); err != nil {
					d.Errorf("Unmount at the end: %v", err)
				}
			}
		}
		if err := d.Remove(ctx, s.Name); err != nil {
			d.Errorf("Remove at the end: %v", err)
		}
	}
	d.close()
}

// spec is a volume of the case.
func (d *driver) spec(name string) volume.Volume {
	return volume.Volume{Name: name, Size: d.h.Size, Options: d.h.Options}
}

func (d *driver) create(name string) {
	d.Helper()
	if err := d.Create(d.Context(), d.spec(name)); err != nil {
		d.Fatalf("Create(%q): %v", name, err)
	}
}

func (d *driver) mount(name, task string, readOnly bool) string {
	d.Helper()
	path, err := d.Mount(d.Context(), volume.Mount{Volume: name, Task: task, ReadOnly: readOnly})
	if err != nil {
		d.Fatalf("Mount(%q for %q, read-only %v): %v", name, task, readOnly, err)
	}
	if !filepath.IsAbs(path) {
		d.Fatalf("Mount(%q) = %q, want an absolute path", name, path)
	}
	return path
}

func (d *driver) unmount(name, task string, readOnly bool) {
	d.Helper()
	if err := d.Unmount(d.Context(), volume.Mount{Volume: name, Task: task, ReadOnly: readOnly}); err != nil {
		d.Fatalf("Unmount(%q of %q, read-only %v): %v", name, task, readOnly, err)
	}
}

func (d *driver) remove(name string) {
	d.Helper()
	if err := d.Remove(d.Context(), name); err != nil {
		d.Fatalf("Remove(%q): %v", name, err)
	}
}

func (d *driver) write(path, name, data string) {
	d.Helper()
	if err := d.h.Write(path, name, []byte(data)); err != nil {
		d.Fatalf("write %s/%s: %v", path, name, err)
	}
}

// reads checks that a file holds want.
func (d *driver) reads(path, name, want, why string) {
	d.Helper()
	got, err := d.h.Read(path, name)
	if err != nil {
		d.Errorf("read %s/%s: %v; %s", path, name, err, why)
	} else if string(got) != want {
		d.Errorf("%s/%s holds %q, want %q: %s", path, name, got, want, why)
	}
}

// lacks checks that there is no such file.
func (d *driver) lacks(path, name, why string) {
	d.Helper()
	if got, err := d.h.Read(path, name); err == nil {
		d.Errorf("%s/%s holds %q, want no such file: %s", path, name, got, why)
	}
}

// lists checks the names of the volumes, and of the tasks of each.
func (d *driver) lists(want ...string) {
	d.Helper()
	list, err := d.List(d.Context())
	if err != nil {
		d.Fatalf("List: %v", err)
	}
	var got []string
	for _, s := range list {
		got = append(got, fmt.Sprintf("%s%q", s.Name, s.Tasks))
	}
	if !slices.Equal(got, want) {
		d.Errorf("List = %v, want %v", got, want)
	}
}

// is checks that err is of a kind.
func (d *driver) is(call string, err, want error) {
	d.Helper()
	if !errors.Is(err, want) {
		d.Errorf("%s = %v, want an error that is %q", call, err, want)
	}
}
