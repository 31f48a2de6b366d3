package volumetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/orchestrate-go/orchestrate/volume"
)

func createIsIdempotent(d *driver) {
	d.create("a")
	path := d.mount("a", "t1", false)
	d.write(path, "f", "kept")
	d.create("a")
	d.reads(path, "f", "kept", "Create of a volume that exists leaves its data")
	d.lists(`a["t1"]`)
}

func createRefusesBadNames(d *driver) {
	for _, name := range []string{
		"", ".", "..", "../a", "a/b", "/a", ".a", "-a", "_a", "a b", "a\x00b", "a\n", "ä", `a\b`, "a:b", "a@b", strings.Repeat("a", 129),
	} {
		err := d.Create(d.Context(), d.spec(name))
		var spec *volume.SpecError
		if !errors.As(err, &spec) {
			d.Errorf("Create(%q) = %v, want a *volume.SpecError: the name leads somewhere else or is no name", name, err)
		}
		if _, err := d.Mount(d.Context(), volume.Mount{Volume: name, Task: "t1"}); err == nil {
			d.Errorf("Mount(%q) succeeded, want it refused", name)
		}
	}
	negative := d.spec("a")
	negative.Size = -1
	if err := d.Create(d.Context(), negative); err == nil {
		d.Errorf("Create with Size -1 succeeded, want it refused")
	}
	d.lists()
	long := strings.Repeat("a", 128)
	d.create(long)
	d.create("9_.-Z")
	d.lists("9_.-Z[]", long+"[]")
}

func createRefusesAnotherSpec(d *driver) {
	d.create("a")
	for field, change := range map[string]func(*volume.Volume){
		"size":      func(v *volume.Volume) { v.Size *= 2 },
		"exclusive": func(v *volume.Volume) { v.Exclusive = true },
		"labels":    func(v *volume.Volume) { v.Labels = map[string]string{"a": "b"} },
	} {
		v := d.spec("a")
		change(&v)
		err := d.Create(d.Context(), v)
		var exists *volume.ExistsError
		if !errors.As(err, &exists) || exists.Field != field || exists.Volume != "a" {
			d.Errorf("Create with another %s = %v, want an *ExistsError that names the volume and that field", field, err)
		}
	}
}

func dataOutlivesTasks(d *driver) {
	d.create("a")
	d.write(d.mount("a", "t1", false), "f", "1")
	d.unmount("a", "t1", false)
	path := d.mount("a", "t2", false)
	d.reads(path, "f", "1", "a volume outlives the task that wrote it")
	d.write(path, "f", "22")
	d.reads(d.mount("a", "t3", false), "f", "22", "two tasks share a volume")
	d.lists(`a["t2" "t3"]`)
}

func volumesAreApart(d *driver) {
	d.create("a")
	d.create("b")
	a, b := d.mount("a", "t1", false), d.mount("b", "t1", false)
	d.write(a, "f", "of a")
	d.lacks(b, "f", "it was written to another volume")
	d.write(b, "f", "of b")
	d.reads(a, "f", "of a", "it was overwritten in another volume")
	d.unmount("a", "t1", false)
	d.lists(`a[]`, `b["t1"]`)
}

func mountIsIdempotent(d *driver) {
	d.create("a")
	first := d.mount("a", "t1", false)
	d.write(first, "f", "1")
	if again := d.mount("a", "t1", false); again != first {
		d.Errorf("the same Mount again = %q, want the same path, %q", again, first)
	}
	d.reads(first, "f", "1", "mounting again must not hide the content")
	d.lists(`a["t1"]`)
	d.unmount("a", "t1", false)
	d.lists(`a[]`)
	if err := d.Create(d.Context(), d.spec("b")); err != nil {
		d.Fatalf("Create: %v", err)
	}
	if _, err := d.Mount(d.Context(), volume.Mount{Volume: "b"}); err == nil {
		d.Errorf("Mount without a task succeeded, want it refused")
	}
	for _, task := range []string{"../x", "a/b", "..", ".", "ns/web.1", "ä ö"} {
		path := d.mount("b", task, false)
		d.write(path, "f", task)
		d.unmount("b", task, false)
	}
	d.lists("a[]", "b[]")
}

func mountOfUnknown(d *driver) {
	_, err := d.Mount(d.Context(), volume.Mount{Volume: "a", Task: "t1"})
	d.is("Mount of an unknown volume", err, volume.ErrNotFound)
	d.lists()
}

func unmountIsIdempotent(d *driver) {
	d.unmount("a", "t1", false)
	d.create("a")
	d.unmount("a", "t1", false)
	d.mount("a", "t1", false)
	d.mount("a", "t1", true)
	d.unmount("a", "t1", false)
	d.lists(`a["t1"]`) // its read-only mount
	d.unmount("a", "t1", false)
	d.lists(`a["t1"]`)
	d.unmount("a", "t1", true)
	d.lists(`a[]`)
}

func readOnly(d *driver) {
	d.create("a")
	d.write(d.mount("a", "t1", false), "f", "1")
	view := d.mount("a", "t2", true)
	d.reads(view, "f", "1", "a read-only mount shows the content")
	d.lists(`a["t1" "t2"]`)
	if err := d.h.Write(view, "g", nil); err == nil {
		// The interface lets the runtime hold a mount read-only, so this
		// alone is no mistake; but then it must be the volume itself.
		d.reads(d.mount("a", "t1", false), "g", "", "the read-only path is writable and is not the volume")
	}
	if again := d.mount("a", "t2", true); again != view {
		d.Errorf("the same read-only Mount again = %q, want %q", again, view)
	}
}

func removeWhileInUse(d *driver) {
	d.create("a")
	path := d.mount("a", "t2", false)
	d.mount("a", "t1", true)
	d.write(path, "f", "1")
	err := d.Remove(d.Context(), "a")
	d.is("Remove of a mounted volume", err, volume.ErrInUse)
	var use *volume.InUseError
	if errors.As(err, &use) && !slices.Equal(use.Tasks, []string{"t1", "t2"}) {
		d.Errorf("the error names the tasks %q, want t1 and t2", use.Tasks)
	}
	d.reads(path, "f", "1", "a Remove that is refused changes nothing")
	d.unmount("a", "t1", true)
	d.is("Remove of a volume with one mount left", d.Remove(d.Context(), "a"), volume.ErrInUse)
	d.unmount("a", "t2", false)
	d.remove("a")
	d.lists()
}

func removeDeletesData(d *driver) {
	d.remove("a") // that is not there
	d.create("a")
	d.write(d.mount("a", "t1", false), "f", "1")
	d.unmount("a", "t1", false)
	d.remove("a")
	d.remove("a")
	_, err := d.Mount(d.Context(), volume.Mount{Volume: "a", Task: "t1"})
	d.is("Mount of a removed volume", err, volume.ErrNotFound)
	d.create("a")
	d.lacks(d.mount("a", "t1", false), "f", "a new volume has nothing of a removed one of its name")
}

func exclusive(d *driver) {
	v := d.spec("a")
	v.Exclusive = true
	if err := d.Create(d.Context(), v); err != nil {
		d.Fatalf("Create: %v", err)
	}
	d.mount("a", "t1", false)
	d.mount("a", "t1", true) // another container of the same task
	for _, ro := range []bool{false, true} {
		_, err := d.Mount(d.Context(), volume.Mount{Volume: "a", Task: "t2", ReadOnly: ro})
		d.is("Mount of an exclusive volume by a second task", err, volume.ErrInUse)
	}
	d.lists(`a["t1"]`)
	d.unmount("a", "t1", false)
	_, err := d.Mount(d.Context(), volume.Mount{Volume: "a", Task: "t2"})
	d.is("Mount while the first task still has it read-only", err, volume.ErrInUse)
	d.unmount("a", "t1", true)
	d.mount("a", "t2", false)
}

func listIsSortedAndComplete(d *driver) {
	d.lists()
	for _, name := range []string{"b", "a10", "a2"} {
		d.create(name)
	}
	for _, task := range []string{"t2", "t10", "t1"} {
		d.mount("b", task, false)
	}
	d.lists("a10[]", "a2[]", `b["t1" "t10" "t2"]`)
	list, err := d.List(d.Context())
	if err != nil {
		d.Fatalf("List: %v", err)
	}
	for _, s := range list {
		if field := volume.Difference(s.Volume, d.spec(s.Name)); field != "" {
			d.Errorf("List has %q with another %s than it was created with", s.Name, field)
		}
		if s.Used < -1 {
			d.Errorf("%q takes %d bytes, want at least 0, or -1 for unknown", s.Name, s.Used)
		}
	}
	// What is returned is the caller's own.
	if len(list) > 0 {
		if list[0].Options == nil {
			list[0].Options = map[string]string{}
		}
		list[0].Options["changed"] = "by the caller"
		d.create(list[0].Name)
	}
}

func reopen(d *driver) {
	d.create("a")
	d.create("b")
	path := d.mount("a", "t1", false)
	view := d.mount("a", "t2", true)
	d.write(path, "f", "1")
	d.reopen()
	d.lists(`a["t1" "t2"]`, "b[]")
	d.create("a")
	d.reads(path, "f", "1", "a mount outlives the program")
	if got := d.mount("a", "t1", false); got != path {
		d.Errorf("after a restart the same Mount = %q, want %q", got, path)
	}
	if got := d.mount("a", "t2", true); got != view {
		d.Errorf("after a restart the same read-only Mount = %q, want %q", got, view)
	}
	d.reads(path, "f", "1", "mounting again after a restart must not hide the content")
	d.is("Remove after a restart of a mounted volume", d.Remove(d.Context(), "a"), volume.ErrInUse)
	d.unmount("a", "t1", false)
	d.unmount("a", "t2", true)
	d.remove("a")
	d.reopen()
	d.lists("b[]")
}

func cancelledContext(d *driver) {
	d.create("a")
	ctx, cancel := context.WithCancel(d.Context())
	cancel()
	m := volume.Mount{Volume: "a", Task: "t1"}
	_, mountErr := d.Mount(ctx, m)
	_, listErr := d.List(ctx)
	for call, err := range map[string]error{
		"Create": d.Create(ctx, d.spec("b")), "Mount": mountErr, "List": listErr, "Remove": d.Remove(ctx, "a"),
	} {
		d.is(call+" with a cancelled context", err, context.Canceled)
	}
	d.lists("a[]")
}

// concurrent calls from many goroutines, under -race, must leave a state that
// some order of them explains.
func concurrent(d *driver) {
	const tasks = 8
	var wg sync.WaitGroup
	errs := make(chan error, 16*tasks)
	for i := range tasks {
		wg.Go(func() {
			task := fmt.Sprintf("t%d", i)
			for _, name := range []string{"shared", task} {
				m := volume.Mount{Volume: name, Task: task, ReadOnly: i%2 == 1}
				errs <- d.Create(d.Context(), d.spec(name))
				_, err := d.Mount(d.Context(), m)
				errs <- err
				_, err = d.List(d.Context())
				errs <- err
				if name == task {
					errs <- d.Unmount(d.Context(), m)
					errs <- d.Remove(d.Context(), name)
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			d.Errorf("a call among concurrent ones: %v", err)
		}
	}
	d.lists(`shared["t0" "t1" "t2" "t3" "t4" "t5" "t6" "t7"]`)
}
