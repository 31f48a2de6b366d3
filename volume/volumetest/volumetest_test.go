package volumetest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/orchestrate-go/orchestrate/volume"
	"github.com/orchestrate-go/orchestrate/volume/memory"
	"github.com/orchestrate-go/orchestrate/volume/volumetest"
)

// recorder is a T that remembers whether it failed.
type recorder struct {
	ctx context.Context
	mu  sync.Mutex
	got []string
}

// errStop ends a case by a panic, as Fatalf ends a test.
var errStop = errors.New("stopped")

func (r *recorder) Helper()                  {}
func (r *recorder) Context() context.Context { return r.ctx }
func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, fmt.Sprintf(format, args...))
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	panic(errStop)
}

// run is what a case finds wrong with a driver.
func run(t *testing.T, name string, h volumetest.Harness) []string {
	t.Helper()
	for _, c := range volumetest.Cases() {
		if c.Name != name {
			continue
		}
		r := &recorder{ctx: t.Context()}
		func() {
			defer func() {
				if p := recover(); p != nil && p != errStop {
					panic(p)
				}
			}()
			c.Run(r, h)
		}()
		return r.got
	}
	t.Fatalf("there is no case %q", name)
	return nil
}

// wrong is a right driver with one mistake planted.
type wrong struct {
	*memory.Driver
	create func(context.Context, volume.Volume) error
	remove func(context.Context, string) error
	mount  func(context.Context, volume.Mount) (string, error)
	unmnt  func(context.Context, volume.Mount) error
	list   func(context.Context) ([]volume.Status, error)
	snap   func(context.Context, string, string) error
	expand func(context.Context, string, int64) error
	bind   func(context.Context, volume.Bind) (string, error)
	claim  func(context.Context, volume.Claim) error
}

func (w *wrong) Claim(ctx context.Context, c volume.Claim) error {
	if w.claim != nil {
		return w.claim(ctx, c)
	}
	return w.Driver.Claim(ctx, c)
}

func (w *wrong) Create(ctx context.Context, v volume.Volume) error {
	if w.create != nil {
		return w.create(ctx, v)
	}
	return w.Driver.Create(ctx, v)
}

func (w *wrong) Remove(ctx context.Context, name string) error {
	if w.remove != nil {
		return w.remove(ctx, name)
	}
	return w.Driver.Remove(ctx, name)
}

func (w *wrong) Mount(ctx context.Context, m volume.Mount) (string, error) {
	if w.mount != nil {
		return w.mount(ctx, m)
	}
	return w.Driver.Mount(ctx, m)
}

func (w *wrong) Unmount(ctx context.Context, m volume.Mount) error {
	if w.unmnt != nil {
		return w.unmnt(ctx, m)
	}
	return w.Driver.Unmount(ctx, m)
}

func (w *wrong) List(ctx context.Context) ([]volume.Status, error) {
	if w.list != nil {
		return w.list(ctx)
	}
	return w.Driver.List(ctx)
}

func (w *wrong) Snapshot(ctx context.Context, name, snapshot string) error {
	if w.snap != nil {
		return w.snap(ctx, name, snapshot)
	}
	return w.Driver.Snapshot(ctx, name, snapshot)
}

func (w *wrong) Expand(ctx context.Context, name string, size int64) error {
	if w.expand != nil {
		return w.expand(ctx, name, size)
	}
	return w.Driver.Expand(ctx, name, size)
}

func (w *wrong) Bind(ctx context.Context, b volume.Bind) (string, error) {
	if w.bind != nil {
		return w.bind(ctx, b)
	}
	return w.Driver.Bind(ctx, b)
}

// Each planted mistake must be found by the case that is for it.
func TestWrongIsCaught(t *testing.T) {
	forget := func(w *wrong) { *w.Driver = memory.Driver{Roots: w.Driver.Roots} }
	for mistake, c := range map[string]struct {
		by    string // the case
		plant func(w *wrong)
	}{
		"none": {"Reopen", func(*wrong) {}},
		"Create empties a volume that exists": {"CreateIsIdempotent", func(w *wrong) {
			w.create = func(ctx context.Context, v volume.Volume) error { forget(w); return w.Driver.Create(ctx, v) }
		}},
		"Create takes any name": {"CreateRefusesBadNames", func(w *wrong) {
			w.create = func(ctx context.Context, v volume.Volume) error {
				if err := w.Driver.Create(ctx, v); !errors.Is(err, volume.ErrExists) && v.Size >= 0 {
					return nil
				}
				return errors.New("exists")
			}
		}},
		"Create ignores another spec": {"CreateRefusesAnotherSpec", func(w *wrong) {
			w.create = func(ctx context.Context, v volume.Volume) error {
				if err := w.Driver.Create(ctx, v); !errors.Is(err, volume.ErrExists) {
					return err
				}
				return nil
			}
		}},
		"Unmount deletes the data": {"DataOutlivesTasks", func(w *wrong) {
			w.unmnt = func(ctx context.Context, m volume.Mount) error {
				forget(w)
				return w.Driver.Create(ctx, volume.Volume{Name: m.Volume, Size: 8 << 20})
			}
		}},
		"all volumes are one": {"VolumesAreApart", func(w *wrong) {
			w.mount = func(ctx context.Context, m volume.Mount) (string, error) {
				if _, err := w.Driver.Mount(ctx, m); err != nil {
					return "", err
				}
				m.Volume = "a"
				return w.Driver.Mount(ctx, m)
			}
		}},
		"Claim does nothing": {"Claim", func(w *wrong) {
			w.claim = func(context.Context, volume.Claim) error { return nil }
		}},
		"an old Claim is no error": {"Claim", func(w *wrong) {
			w.claim = func(ctx context.Context, c volume.Claim) error {
				if err := w.Driver.Claim(ctx, c); !errors.Is(err, volume.ErrFenced) {
					return err
				}
				return nil
			}
		}},
		"Claim bars only the task before": {"Claim", func(w *wrong) {
			w.mount = func(ctx context.Context, m volume.Mount) (string, error) {
				path, err := w.Driver.Mount(ctx, m)
				if errors.Is(err, volume.ErrFenced) && m.Task == "t0" {
					return "/memory/rw/a", nil
				}
				return path, err
			}
		}},
		"Mount makes a path each time": {"MountIsIdempotent", func(w *wrong) {
			n := 0
			w.mount = func(ctx context.Context, m volume.Mount) (string, error) {
				path, err := w.Driver.Mount(ctx, m)
				n++
				return fmt.Sprint(path, "/../", strings.Repeat("./", n), m.Volume), err
			}
		}},
		"Mount makes unknown volumes": {"MountOfUnknown", func(w *wrong) {
			w.mount = func(ctx context.Context, m volume.Mount) (string, error) {
				w.Driver.Create(ctx, volume.Volume{Name: m.Volume})
				return w.Driver.Mount(ctx, m)
			}
		}},
		"Unmount takes all mounts of a task": {"UnmountIsIdempotent", func(w *wrong) {
			w.unmnt = func(ctx context.Context, m volume.Mount) error {
				m.ReadOnly = true
				w.Driver.Unmount(ctx, m)
				m.ReadOnly = false
				return w.Driver.Unmount(ctx, m)
			}
		}},
		"a read-only mount is of nothing": {"ReadOnly", func(w *wrong) {
			w.mount = func(ctx context.Context, m volume.Mount) (string, error) {
				if m.ReadOnly {
					w.Driver.Mount(ctx, m)
					return "/memory/none", nil
				}
				return w.Driver.Mount(ctx, m)
			}
		}},
		"Remove of a volume in use": {"RemoveWhileInUse", func(w *wrong) {
			w.remove = func(ctx context.Context, name string) error { forget(w); return nil }
		}},
		"Remove does nothing": {"RemoveDeletesData", func(w *wrong) {
			w.remove = func(context.Context, string) error { return nil }
		}},
		"Exclusive is ignored": {"Exclusive", func(w *wrong) {
			w.create = func(ctx context.Context, v volume.Volume) error { v.Exclusive = false; return w.Driver.Create(ctx, v) }
		}},
		"List is not sorted": {"ListIsSortedAndComplete", func(w *wrong) {
			w.list = func(ctx context.Context) ([]volume.Status, error) {
				l, err := w.Driver.List(ctx)
				slices.Reverse(l)
				return l, err
			}
		}},
		"List gives its own maps": {"ListIsSortedAndComplete", func(w *wrong) {
			specs := map[string]volume.Volume{}
			w.create = func(ctx context.Context, v volume.Volume) error {
				if had, ok := specs[v.Name]; ok && volume.Difference(had, v) != "" {
					return &volume.ExistsError{Volume: v.Name}
				}
				v = v.Clone()
				if v.Options == nil {
					v.Options = map[string]string{}
				}
				specs[v.Name] = v
				return w.Driver.Create(ctx, v)
			}
			w.list = func(ctx context.Context) ([]volume.Status, error) {
				l, err := w.Driver.List(ctx)
				for i := range l {
					l[i].Options = specs[l[i].Name].Options
				}
				return l, err
			}
		}},
		"the context is ignored": {"CancelledContext", func(w *wrong) {
			w.list = func(ctx context.Context) ([]volume.Status, error) { return w.Driver.List(context.WithoutCancel(ctx)) }
		}},
		"concurrent mounts get lost": {"Concurrent", func(w *wrong) {
			var mu sync.Mutex
			var last volume.Mount
			w.mount = func(ctx context.Context, m volume.Mount) (string, error) {
				mu.Lock()
				defer mu.Unlock()
				if m.Volume == "shared" { // each overwrites the one before
					w.Driver.Unmount(ctx, last)
					last = m
				}
				return w.Driver.Mount(ctx, m)
			}
		}},
		"a snapshot is taken again": {"Snapshot", func(w *wrong) {
			w.snap = func(ctx context.Context, name, snapshot string) error {
				if name == "a" && volume.ValidName(snapshot) {
					w.Driver.RemoveSnapshot(ctx, snapshot)
				}
				return w.Driver.Snapshot(ctx, name, snapshot)
			}
		}},
		"Expand says yes and does nothing": {"Expand", func(w *wrong) {
			w.expand = func(ctx context.Context, name string, size int64) error {
				if err := w.Driver.Expand(ctx, name, 8<<20); err != nil || size >= 16<<20 {
					return err
				}
				return &volume.SpecError{}
			}
		}},
		"Bind looks at the prefix alone": {"Bind", func(w *wrong) {
			w.Roots = []string{"/"}
			w.bind = func(ctx context.Context, b volume.Bind) (string, error) {
				if !strings.HasPrefix(b.Source, "/srv/data") {
					return "", volume.ErrForbidden
				}
				return w.Driver.Bind(ctx, b)
			}
		}},
	} {
		t.Run(mistake, func(t *testing.T) {
			w := &wrong{Driver: &memory.Driver{Roots: []string{"/srv/data"}}}
			c.plant(w)
			got := run(t, c.by, volumetest.Harness{
				Open:  func() (volume.Driver, error) { return w, nil },
				Write: func(path, name string, data []byte) error { return w.WriteFile(path, name, data) },
				Read:  func(path, name string) ([]byte, error) { return w.ReadFile(path, name) },

				BindSource: "/srv/data", BindOutside: "/etc",
			})
			if (len(got) == 0) != (mistake == "none") {
				t.Errorf("the case %s finds %q", c.by, got)
			}
		})
	}
	t.Run("a restart forgets", func(t *testing.T) {
		var d *memory.Driver
		if got := run(t, "Reopen", volumetest.Harness{
			Open:  func() (volume.Driver, error) { d = new(memory.Driver); return d, nil },
			Write: func(path, name string, data []byte) error { return d.WriteFile(path, name, data) },
			Read:  func(path, name string) ([]byte, error) { return d.ReadFile(path, name) },
		}); len(got) == 0 {
			t.Error("the case Reopen finds nothing")
		}
	})
}
