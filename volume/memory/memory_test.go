package memory_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/orchestrate-go/orchestrate/volume"
	"github.com/orchestrate-go/orchestrate/volume/memory"
	"github.com/orchestrate-go/orchestrate/volume/volumetest"
)

func TestConformance(t *testing.T) {
	volumetest.Run(t, func(t *testing.T) volumetest.Harness {
		d := &memory.Driver{Roots: []string{"/srv/data"}}
		return volumetest.Harness{
			Open:  func() (volume.Driver, error) { return d, nil },
			Write: d.WriteFile, Read: d.ReadFile,
			BindSource: "/srv/data", BindOutside: "/etc",
		}
	})
}

func TestSizeAndReadOnlyAreHeld(t *testing.T) {
	ctx := t.Context()
	var d memory.Driver
	if err := d.Create(ctx, volume.Volume{Name: "a", Size: 3}); err != nil {
		t.Fatal(err)
	}
	rw, _ := d.Mount(ctx, volume.Mount{Volume: "a", Task: "t"})
	ro, _ := d.Mount(ctx, volume.Mount{Volume: "a", Task: "t", ReadOnly: true})
	if err := d.WriteFile(rw, "f", []byte("123")); err != nil {
		t.Errorf("a write of the whole Size: %v", err)
	}
	if err := d.WriteFile(rw, "g", []byte("4")); !errors.Is(err, memory.ErrNoSpace) {
		t.Errorf("a write beyond Size = %v, want ErrNoSpace", err)
	}
	if err := d.WriteFile(ro, "f", nil); !errors.Is(err, memory.ErrReadOnly) {
		t.Errorf("a write by the read-only path = %v, want ErrReadOnly", err)
	}
	if got, err := d.ReadFile(ro, "f"); string(got) != "123" || err != nil {
		t.Errorf("the read-only path reads %q, %v; want 123", got, err)
	}
}

func TestFailNext(t *testing.T) {
	ctx := t.Context()
	var d memory.Driver
	first, second := errors.New("first"), errors.New("second")
	d.FailNext("Create", first)
	d.FailNext("Create", second)
	for _, want := range []error{first, second, nil} {
		if got := d.Create(ctx, volume.Volume{Name: "a"}); got != want {
			t.Errorf("Create = %v, want %v", got, want)
		}
	}
}

func Example() {
	ctx := context.Background()
	var d memory.Driver
	d.Create(ctx, volume.Volume{Name: "data"})
	path, _ := d.Mount(ctx, volume.Mount{Volume: "data", Task: "web.1"})
	d.WriteFile(path, "greeting", []byte("hello"))
	err := d.Remove(ctx, "data")
	fmt.Println(err)
	// Output: volume "data" is in use by tasks ["web.1"]; stop them first
}
