package volume_test

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/orchestrate-go/orchestrate/volume"
)

// A valid name is one by the written rule, and one file name that stays where
// it is put.
func FuzzValidName(f *testing.F) {
	rule := regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\z`)
	for _, seed := range []string{"", "a", ".", "..", "../a", "a/b", "a\x00", "a\n", "-a", "a.b_c-d", "ä", "a..b", `a\b`, "C:"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got := volume.ValidName(name)
		if want := rule.MatchString(name); got != want {
			t.Errorf("ValidName(%q) = %v, want %v", name, got, want)
		}
		if got && (filepath.Join("dir", name) != "dir"+string(filepath.Separator)+name || !fs.ValidPath(name)) {
			t.Errorf("%q is valid and leads out of its folder", name)
		}
		errs := append(volume.Volume{Name: name}.Validate(), volume.Mount{Volume: name, Task: "t"}.Validate()...)
		if (len(errs) == 0) != got {
			t.Errorf("Validate of name %q finds %v, but ValidName is %v", name, errs, got)
		}
	})
}

func TestDifference(t *testing.T) {
	base := volume.Volume{Name: "a", Size: 1, Options: map[string]string{"x": "y"}, Labels: map[string]string{"l": "m"}}
	for want, change := range map[string]func(*volume.Volume){
		"":          func(*volume.Volume) {},
		"name":      func(v *volume.Volume) { v.Name = "b" },
		"size":      func(v *volume.Volume) { v.Size = 2 },
		"options":   func(v *volume.Volume) { v.Options["x"] = "z" },
		"exclusive": func(v *volume.Volume) { v.Exclusive = true },
		"labels":    func(v *volume.Volume) { v.Labels = nil },
	} {
		v := base.Clone()
		change(&v)
		if got := volume.Difference(base, v); got != want {
			t.Errorf("Difference = %q, want %q", got, want)
		}
	}
	if got := volume.Difference(volume.Volume{}, volume.Volume{Labels: map[string]string{}}); got != "" {
		t.Errorf("an empty map and none differ in %q, want them to be the same", got)
	}
}

func TestErrorsMatch(t *testing.T) {
	for want, err := range map[error]error{
		volume.ErrInUse:     &volume.InUseError{Volume: "a", Tasks: []string{"t"}},
		volume.ErrExists:    &volume.ExistsError{Volume: "a", Field: "size"},
		volume.ErrForbidden: &volume.ForbiddenError{Source: "/etc", Roots: []string{"/srv"}, Reason: "is outside of the allowed roots"},
	} {
		if !errors.Is(fmt.Errorf("wrapped: %w", err), want) {
			t.Errorf("%v does not match %v", err, want)
		}
	}
}

func ExampleVolume_Validate() {
	for _, mistake := range (volume.Volume{Name: "../etc", Size: -1}).Validate() {
		fmt.Println(mistake.Field)
	}
	// Output:
	// name
	// size
}
