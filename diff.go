package orchestrate

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// Hash identifies what a task of t runs: 24 characters of [a-z2-7] that are
// the same for two templates exactly when these are equal with their defaults
// filled in, whatever the order of maps and whether a default was written or
// left away. It is stable over processes and machines, and over versions of
// this library that change no default.
//
// It is meant for valid templates: two that differ in bytes that are not
// UTF-8 may share a hash.
func (t Template) Hash() string {
	t = clone(reflect.ValueOf(t)).Interface().(Template)
	t.fill()
	// encoding/json writes fields in the order of their declaration and maps
	// by key.
	data, err := json.Marshal(t)
	if err != nil {
		panic("orchestrate: a template is plain data, but: " + err.Error())
	}
	sum := sha256.Sum256(data)
	// 120 bits: no accident makes two templates one.
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:15]))
}

// Change is one difference between two specs.
type Change struct {
	// Path of the field, in which elements of lists go by name where they
	// have one, such as `containers["main"].image`, so that one that is
	// inserted does not change all after it.
	Path string
	// Old and New are JSON; empty when there is no such field. Durations
	// are written such as 10s.
	Old, New string
}

// String is the change in one line.
func (c Change) String() string {
	switch {
	case c.Old == "":
		return fmt.Sprintf("%s: added %s", c.Path, c.New)
	case c.New == "":
		return fmt.Sprintf("%s: removed %s", c.Path, c.Old)
	}
	return fmt.Sprintf("%s: %s → %s", c.Path, c.Old, c.New)
}

// Diff returns what changed from one spec to another, both with their
// defaults filled in, in the order of the fields; nil when nothing did. Values
// are shown as they are, those of environment variables included.
func Diff(old, new Service) []Change { return diffSpecs(old.WithDefaults(), new.WithDefaults()) }

// diffSpecs is what changed between two specs of one type with their defaults.
func diffSpecs(old, new any) []Change {
	var d differ
	d.diff("", reflect.ValueOf(old), reflect.ValueOf(new))
	return d.changes
}

type differ struct{ changes []Change }

// diff compares two values of one type. One that is not valid is not there.
func (d *differ) diff(path string, old, new reflect.Value) {
	if !old.IsValid() || !new.IsValid() {
		d.changes = append(d.changes, Change{path, text(old), text(new)})
		return
	}
	switch old.Kind() {
	case reflect.Pointer:
		if !old.IsNil() && !new.IsNil() {
			d.diff(path, old.Elem(), new.Elem())
			return
		}
	case reflect.Struct:
		d.fields(path, old, new)
		return
	case reflect.Map:
		for _, k := range sortedKeys(union(old, new)) {
			d.entry(k.path(path), old.MapIndex(k.key), new.MapIndex(k.key))
		}
		return
	case reflect.Slice:
		if d.elements(path, old, new) {
			return
		}
	}
	if a, b := text(old), text(new); a != b {
		d.changes = append(d.changes, Change{path, a, b})
	}
}

func (d *differ) fields(path string, old, new reflect.Value) {
	var values []reflect.Value
	eachField(new, func(_ string, f reflect.Value) { values = append(values, f) })
	i := 0
	eachField(old, func(name string, f reflect.Value) {
		d.diff(join(path, name), f, values[i])
		i++
	})
}

// entry compares what may be on one side alone.
func (d *differ) entry(path string, old, new reflect.Value) {
	if old.IsValid() || new.IsValid() {
		d.diff(path, old, new)
	}
}

func union(a, b reflect.Value) reflect.Value {
	all := reflect.MakeMap(a.Type())
	for _, m := range []reflect.Value{a, b} {
		for iter := m.MapRange(); iter.Next(); {
			all.SetMapIndex(iter.Key(), iter.Value())
		}
	}
	return all
}

// elements compares lists whose elements have names of their own, and reports
// whether these are such lists. Those of the new list come first, in its
// order; what was removed comes after.
func (d *differ) elements(path string, old, new reflect.Value) bool {
	a, okA := named(old)
	b, okB := named(new)
	if !okA || !okB {
		return false
	}
	for i := range new.Len() {
		name := nameOf(new.Index(i))
		d.entry(atKey(path, name), a[name], new.Index(i))
	}
	for i := range old.Len() {
		if name := nameOf(old.Index(i)); !b[name].IsValid() {
			d.entry(atKey(path, name), old.Index(i), reflect.Value{})
		}
	}
	return true
}

// named returns the elements of a list by name; not ok when they have none or
// share one.
func named(list reflect.Value) (elements map[string]reflect.Value, ok bool) {
	elements = map[string]reflect.Value{}
	for i := range list.Len() {
		name := nameOf(list.Index(i))
		if _, twice := elements[name]; twice || name == "" {
			return nil, false
		}
		elements[name] = list.Index(i)
	}
	return elements, list.Type().Elem().Kind() == reflect.Struct
}

// nameOf is what tells an element of a list from the others.
func nameOf(v reflect.Value) string {
	if v.Kind() != reflect.Struct {
		return ""
	}
	if p, ok := v.Interface().(Port); ok {
		return fmt.Sprintf("%d/%s", p.Virtual, p.Protocol)
	}
	for _, field := range []string{"Name", "Target"} {
		if f := v.FieldByName(field); f.IsValid() && f.Kind() == reflect.String {
			return f.String()
		}
	}
	return ""
}

// text is a value as compact JSON; "" for one that is empty or not there.
func text(v reflect.Value) string {
	if !v.IsValid() || v.IsZero() && v.Kind() != reflect.Struct && v.Kind() != reflect.Bool && v.Kind() != reflect.Int {
		return ""
	}
	if v.Type() == durationType {
		return fmt.Sprint(v.Interface())
	}
	data, err := json.Marshal(v.Interface())
	if err != nil {
		return fmt.Sprint(v.Interface())
	}
	return string(data)
}
