//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/volume"
	"github.com/orchestrate-go/orchestrate/volume/memory"
)

// Any calls in any order, with restarts in between, end as they do on the
// driver in memory.
func TestAgainstMemory(t *testing.T) {
	base := testDir(t)
	// What is decided does not depend on the disk, whose syncs take long.
	must(t, unix.Mount("tmpfs", base, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(base, 0)) })
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		dir := filepath.Join(base, fmt.Sprint(n))
		d, err := Open(Options{Dir: dir})
		if err != nil {
			rt.Fatal(err)
		}
		defer func() {
			d.Close()
			if err := removeTree(dir); err != nil {
				rt.Error(err)
			}
		}()
		var model memory.Driver
		ctx := context.Background()
		name := rapid.SampledFrom([]string{"a", "b", "../c"})
		mount := rapid.Custom(func(rt *rapid.T) volume.Mount {
			return volume.Mount{Volume: name.Draw(rt, "volume"), ReadOnly: rapid.Bool().Draw(rt, "readOnly"),
				Task: rapid.SampledFrom([]string{"t1", "t/2", ""}).Draw(rt, "task")}
		})
		both := func(call string, real, want error) {
			for _, kind := range []error{volume.ErrNotFound, volume.ErrInUse, volume.ErrExists} {
				if errors.Is(real, kind) != errors.Is(want, kind) {
					rt.Fatalf("%s = %v, in memory %v", call, real, want)
				}
			}
			if (real == nil) != (want == nil) {
				rt.Fatalf("%s = %v, in memory %v", call, real, want)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"create": func(rt *rapid.T) {
				v := volume.Volume{Name: name.Draw(rt, "volume"), Exclusive: rapid.Bool().Draw(rt, "exclusive"), Size: rapid.Int64Range(-1, 1).Draw(rt, "size")}
				both(fmt.Sprintf("Create(%+v)", v), d.Create(ctx, v), model.Create(ctx, v))
			},
			"remove": func(rt *rapid.T) {
				v := name.Draw(rt, "volume")
				both("Remove "+v, d.Remove(ctx, v), model.Remove(ctx, v))
			},
			"mount": func(rt *rapid.T) {
				m := mount.Draw(rt, "mount")
				path, real := d.Mount(ctx, m)
				fake, want := model.Mount(ctx, m)
				both(fmt.Sprintf("Mount(%+v)", m), real, want)
				if real != nil {
					return
				}
				// What was last written in the model is what the real one shows.
				data, err := model.ReadFile(fake, "f")
				got, realErr := os.ReadFile(filepath.Join(path, "f"))
				if string(got) != string(data) || (err == nil) != (realErr == nil) {
					rt.Fatalf("%s holds %q, %v; in memory %q, %v", m.Volume, got, realErr, data, err)
				}
				if !m.ReadOnly {
					data = fmt.Append(nil, rapid.Int().Draw(rt, "data"))
					if model.WriteFile(fake, "f", data) == nil { // it enforces sizes, a directory does not
						if err := os.WriteFile(filepath.Join(path, "f"), data, 0o600); err != nil {
							rt.Fatal(err)
						}
					}
				}
			},
			"unmount": func(rt *rapid.T) {
				m := mount.Draw(rt, "mount")
				both(fmt.Sprintf("Unmount(%+v)", m), d.Unmount(ctx, m), model.Unmount(ctx, m))
			},
			"restart": func(rt *rapid.T) {
				d.Close()
				if d, err = Open(Options{Dir: dir}); err != nil {
					rt.Fatal(err)
				}
			},
			"": func(rt *rapid.T) {
				real, err1 := d.List(ctx)
				want, err2 := model.List(ctx)
				both("List", err1, err2)
				for _, list := range [][]volume.Status{real, want} {
					for i := range list {
						list[i].Used, list[i].Enforced = 0, false // differ by nature
					}
				}
				if a, b := fmt.Sprintf("%+v", real), fmt.Sprintf("%+v", want); a != b {
					rt.Fatalf("List = %s, in memory %s", a, b)
				}
			},
		})
	})
}

// What a task's start and end pay for a volume.
func BenchmarkMount(b *testing.B) {
	for name, readOnly := range map[string]bool{"writable": false, "read-only": true} {
		b.Run(name, func(b *testing.B) {
			d, err := Open(Options{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			ctx := context.Background()
			if err := d.Create(ctx, volume.Volume{Name: "v"}); err != nil {
				b.Fatal(err)
			}
			m := volume.Mount{Volume: "v", Task: "t", ReadOnly: readOnly}
			for b.Loop() {
				if _, err := d.Mount(ctx, m); err != nil {
					b.Fatal(err)
				}
				if err := d.Unmount(ctx, m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
