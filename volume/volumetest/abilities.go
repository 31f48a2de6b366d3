package volumetest

import (
	"errors"
	"fmt"

	"github.com/orchestrate-go/orchestrate/volume"
)

func snapshot(d *driver) {
	s, ok := d.Driver.(volume.Snapshotter)
	if !ok {
		return
	}
	ctx := d.Context()
	must := func(call string, err error) {
		d.Helper()
		if err != nil {
			d.Fatalf("%s: %v", call, err)
		}
	}
	d.create("a")
	d.create("b")
	write := func(data string) {
		d.Helper()
		d.write(d.mount("a", "t1", false), "f", data)
		d.unmount("a", "t1", false)
	}
	write("old")
	must("Snapshot", s.Snapshot(ctx, "a", "s1"))
	write("new")
	must("the same Snapshot again", s.Snapshot(ctx, "a", "s1"))
	d.is("a Snapshot of another volume under a taken name", s.Snapshot(ctx, "b", "s1"), volume.ErrExists)
	d.is("Snapshot of an unknown volume", s.Snapshot(ctx, "none", "s2"), volume.ErrNotFound)
	if err := s.Snapshot(ctx, "a", "../s"); err == nil {
		d.Errorf("Snapshot under the name ../s succeeded, want it refused")
	}
	d.is("Restore of an unknown snapshot", s.Restore(ctx, "none", "c"), volume.ErrNotFound)
	d.is("Restore over another volume", s.Restore(ctx, "s1", "a"), volume.ErrExists)
	if err := s.Restore(ctx, "s1", "../c"); err == nil {
		d.Errorf("Restore as ../c succeeded, want it refused")
	}

	must("Restore", s.Restore(ctx, "s1", "c"))
	d.lists("a[]", "b[]", "c[]")
	d.create("c") // the spec is that of the volume
	path := d.mount("c", "t1", false)
	d.reads(path, "f", "old", "a snapshot holds what was there when it was taken")
	d.write(path, "f", "changed")
	must("the same Restore again", s.Restore(ctx, "s1", "c"))
	d.reads(path, "f", "changed", "the same Restore again leaves the volume as it is")
	d.reads(d.mount("a", "t1", false), "f", "new", "restoring does not touch the first volume")
	d.unmount("c", "t1", false)
	d.unmount("a", "t1", false)

	d.reopen()
	s = d.Driver.(volume.Snapshotter)
	must("Restore after a restart", s.Restore(ctx, "s1", "d"))
	must("the first Restore again, after a restart", s.Restore(ctx, "s1", "c"))
	d.remove("a")
	d.reads(d.mount("d", "t1", false), "f", "old", "writing to a restored volume must not change the snapshot")
	must("RemoveSnapshot", s.RemoveSnapshot(ctx, "s1"))
	must("RemoveSnapshot again", s.RemoveSnapshot(ctx, "s1"))
	d.reads(d.mount("d", "t1", false), "f", "old", "removing a snapshot does not touch restored volumes")
	d.is("Restore of a removed snapshot", s.Restore(ctx, "s1", "e"), volume.ErrNotFound)
}

func expand(d *driver) {
	e, ok := d.Driver.(volume.Expander)
	if !ok {
		return
	}
	ctx := d.Context()
	size := d.h.Size
	d.create("a")
	path := d.mount("a", "t1", false)
	d.write(path, "f", "1")
	for _, next := range []int64{2 * size, 2 * size, 3 * size} {
		err := e.Expand(ctx, "a", next)
		if errors.Is(err, volume.ErrInUse) { // it may be unable to; then it must do it at rest
			d.unmount("a", "t1", false)
			err = e.Expand(ctx, "a", next)
			path = d.mount("a", "t1", false)
		}
		if err != nil {
			d.Fatalf("Expand from %d to %d: %v", size, next, err)
		}
	}
	var spec *volume.SpecError
	if err := e.Expand(ctx, "a", size); !errors.As(err, &spec) {
		d.Errorf("Expand to a smaller size = %v, want a *SpecError", err)
	}
	d.is("Expand of an unknown volume", e.Expand(ctx, "none", size), volume.ErrNotFound)
	d.reads(path, "f", "1", "expanding keeps the data")
	check := func(when string) {
		d.Helper()
		list, err := d.List(ctx)
		if err != nil || len(list) != 1 || list[0].Size != 3*size {
			d.Errorf("%s List = %v, %v; want one volume of size %d", when, list, err, 3*size)
		}
	}
	check("after Expand")
	d.reopen()
	check("after a restart")
	grown := d.spec("a")
	grown.Size = 3 * size
	if err := d.Create(ctx, grown); err != nil {
		d.Errorf("Create with the expanded size = %v, want nil: that is its spec now", err)
	}
	d.reads(d.mount("a", "t1", false), "f", "1", "expanding keeps the data over a restart")
}

func bind(d *driver) {
	b, ok := d.Driver.(volume.Binder)
	if !ok || d.h.BindSource == "" {
		return
	}
	ctx := d.Context()
	first := volume.Bind{Source: d.h.BindSource, Task: "t1"}
	path, err := b.Bind(ctx, first)
	if err != nil {
		d.Fatalf("Bind: %v", err)
	}
	if again, err := b.Bind(ctx, first); again != path || err != nil {
		d.Errorf("the same Bind again = %q, %v; want %q", again, err, path)
	}
	second := volume.Bind{Source: d.h.BindSource, Task: "t0", ReadOnly: true}
	if _, err := b.Bind(ctx, second); err != nil {
		d.Errorf("Bind by a second task: %v", err)
	}
	for _, source := range []string{d.h.BindOutside, d.h.BindSource + "/../../../../../../../../etc", d.h.BindSource + "-beside"} {
		_, err := b.Bind(ctx, volume.Bind{Source: source, Task: "t1"})
		d.is(fmt.Sprintf("Bind of %q", source), err, volume.ErrForbidden)
	}
	lists := func(when string, want ...volume.Bind) {
		d.Helper()
		got, err := b.Binds(ctx)
		if fmt.Sprint(got) != fmt.Sprint(want) || err != nil {
			d.Errorf("%s Binds = %v, %v; want %v", when, got, err, want)
		}
	}
	lists("after two binds", second, first)
	d.reopen()
	b = d.Driver.(volume.Binder)
	lists("after a restart", second, first)
	for _, x := range []volume.Bind{first, second, first} {
		if err := b.Unbind(ctx, x); err != nil {
			d.Errorf("Unbind: %v", err)
		}
	}
	lists("at the end")
}
