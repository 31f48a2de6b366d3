package volumetest

import (
	"errors"

	"github.com/orchestrate-go/orchestrate/volume"
)

func claim(d *driver) {
	f, ok := d.Driver.(volume.Fencer)
	if !ok {
		return
	}
	ctx := d.Context()
	claims := func(task string, epoch int64, why string) {
		d.Helper()
		if err := f.Claim(ctx, volume.Claim{Volume: "a", Task: task, Epoch: epoch}); err != nil {
			d.Fatalf("Claim by %s at epoch %d = %v, want nil: %s", task, epoch, err, why)
		}
	}
	refused := func(task string, epoch int64, why string) {
		d.Helper()
		err := f.Claim(ctx, volume.Claim{Volume: "a", Task: task, Epoch: epoch})
		var fenced *volume.FencedError
		if !errors.As(err, &fenced) || fenced.Volume != "a" || fenced.Task != task {
			d.Errorf("Claim by %s at epoch %d = %v, want a *volume.FencedError that names both: %s", task, epoch, err, why)
		}
	}
	barred := func(task, why string) {
		d.Helper()
		for _, ro := range []bool{false, true} {
			_, err := d.Mount(ctx, volume.Mount{Volume: "a", Task: task, ReadOnly: ro})
			d.is("Mount by "+task+", "+why, err, volume.ErrFenced)
		}
	}
	d.is("Claim of an unknown volume", f.Claim(ctx, volume.Claim{Volume: "a", Task: "t1", Epoch: 1}), volume.ErrNotFound)
	exclusive := d.spec("a")
	exclusive.Exclusive = true
	if err := d.Create(ctx, exclusive); err != nil {
		d.Fatalf("Create: %v", err)
	}
	for _, bad := range []volume.Claim{{Volume: "a", Task: "t1"}, {Volume: "a", Task: "t1", Epoch: -1}, {Volume: "a", Epoch: 1}, {Volume: "../a", Task: "t1", Epoch: 1}} {
		var spec *volume.SpecError
		if err := f.Claim(ctx, bad); !errors.As(err, &spec) {
			d.Errorf("Claim(%+v) = %v, want a *volume.SpecError", bad, err)
		}
	}
	d.mount("a", "t1", false) // before anybody claims it
	claims("t1", 5, "it is the first")
	claims("t1", 5, "it is the same again")
	d.write(d.mount("a", "t1", false), "f", "of t1")
	refused("t0", 4, "it is older")
	refused("t2", 5, "the epoch is taken")
	barred("t0", "which lost its claim")
	barred("t2", "which has none")
	d.lists(`a["t1"]`)

	claims("t2", 9, "it is newer")
	d.lists("a[]") // t1's mount is undone, though nobody unmounted it
	barred("t1", "whose time is over")
	refused("t1", 5, "it is the past")
	d.reads(d.mount("a", "t2", false), "f", "of t1", "the volume follows its slot, not the task")
	d.unmount("a", "t1", false) // late, and harmless
	d.lists(`a["t2"]`)

	d.reopen()
	f = d.Driver.(volume.Fencer)
	barred("t1", "after a restart")
	refused("t1", 8, "the claim outlives the program")
	d.reads(d.mount("a", "t2", false), "f", "of t1", "its owner has it still")
	d.unmount("a", "t2", false)
	barred("t1", "though nobody has it mounted")
	d.remove("a")
	if err := d.Create(ctx, exclusive); err != nil {
		d.Fatalf("Create: %v", err)
	}
	claims("t1", 1, "a new volume has no past")
}
