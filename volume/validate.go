package volume

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// ValidName reports whether name can name a volume or snapshot:
// [A-Za-z0-9][A-Za-z0-9_.-]{0,127}. Such a name is a safe file name on every
// system, so it cannot lead out of a folder.
func ValidName(name string) bool {
	if name == "" || len(name) > 128 {
		return false
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return true
}

const nameRule = "%q is not a name; use up to 128 letters, digits, '_', '.' and '-', the first a letter or digit"

// Validate returns every mistake in v that no driver could accept; none when
// there is none. What Options mean is the driver's own to check.
func (v Volume) Validate() []*SpecError {
	var errs []*SpecError
	if !ValidName(v.Name) {
		errs = append(errs, &SpecError{v.Name, "name", fmt.Sprintf(nameRule, v.Name)})
	}
	if v.Size < 0 {
		errs = append(errs, &SpecError{v.Name, "size", fmt.Sprintf("%d is negative; give the limit in bytes, or 0 for none", v.Size)})
	}
	for _, key := range slices.Sorted(maps.Keys(v.Options)) {
		if key == "" {
			errs = append(errs, &SpecError{v.Name, "options", "has an empty key; name the option"})
		}
	}
	return errs
}

// Validate returns every mistake in m; none when there is none.
func (m Mount) Validate() []*SpecError {
	var errs []*SpecError
	if !ValidName(m.Volume) {
		errs = append(errs, &SpecError{m.Volume, "mount.volume", fmt.Sprintf(nameRule, m.Volume)})
	}
	if m.Task == "" {
		errs = append(errs, &SpecError{m.Volume, "mount.task", "is empty; name the task that mounts the volume"})
	}
	return errs
}

// Difference names the first field in which two specs of one volume differ,
// or is empty when they are the same. An empty map is the same as none.
func Difference(a, b Volume) string {
	switch {
	case a.Name != b.Name:
		return "name"
	case a.Size != b.Size:
		return "size"
	case !maps.Equal(a.Options, b.Options):
		return "options"
	case a.Exclusive != b.Exclusive:
		return "exclusive"
	case !maps.Equal(a.Labels, b.Labels):
		return "labels"
	}
	return ""
}

// Clone returns v with maps of its own.
func (v Volume) Clone() Volume {
	v.Options, v.Labels = maps.Clone(v.Options), maps.Clone(v.Labels)
	return v
}

// CompareBinds orders binds by task, source and, the writable one first,
// ReadOnly: the order of [Binder.Binds].
func CompareBinds(a, b Bind) int {
	ro := 0
	if a.ReadOnly != b.ReadOnly {
		if ro = -1; a.ReadOnly {
			ro = 1
		}
	}
	return cmp.Or(cmp.Compare(a.Task, b.Task), cmp.Compare(a.Source, b.Source), ro)
}
