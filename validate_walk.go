package orchestrate

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Specs are walked by reflection where every field is treated alike: to copy,
// decode and compare them, to check their text and to order what was found.
// Fields are named as in JSON.

// fieldName is the name of a struct's field in JSON. A field without a tag
// goes by its Go name with the first letter in lower case, like all others.
func fieldName(f reflect.StructField) string {
	if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
		return name
	}
	return strings.ToLower(f.Name[:1]) + f.Name[1:]
}

// join is the path of a field of the struct at path.
func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// at is the path of an element of the list at path.
func at(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// atKey is the path of an entry of the map at path.
func atKey(path, key string) string { return path + "[" + strconv.Quote(key) + "]" }

// parent is the path that path is in, or one that does not exist.
func parent(path string) string { return path[:max(strings.LastIndexAny(path, ".["), 0)] }

// mapKey is a key of a map with string keys.
type mapKey struct {
	name string
	key  reflect.Value
}

func (k mapKey) path(path string) string { return atKey(path, k.name) }

func sortedKeys(m reflect.Value) []mapKey {
	keys := make([]mapKey, 0, m.Len())
	for _, k := range m.MapKeys() {
		keys = append(keys, mapKey{k.String(), k})
	}
	slices.SortFunc(keys, func(a, b mapKey) int { return strings.Compare(a.name, b.name) })
	return keys
}

// eachField calls f for the fields of a struct, those of embedded ones as if
// they were its own.
func eachField(v reflect.Value, f func(name string, v reflect.Value)) {
	for i := range v.NumField() {
		if field := v.Type().Field(i); field.Anonymous {
			eachField(v.Field(i), f)
		} else {
			f(fieldName(field), v.Field(i))
		}
	}
}

// walk visits v and everything in it in the order of the fields, with its
// path and the name of the field that it is in.
func walk(v reflect.Value, path, field string, visit func(path, field string, v reflect.Value)) {
	visit(path, field, v)
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			walk(v.Elem(), path, field, visit)
		}
	case reflect.Struct:
		eachField(v, func(name string, f reflect.Value) { walk(f, join(path, name), name, visit) })
	case reflect.Slice:
		for i := range v.Len() {
			walk(v.Index(i), at(path, i), field, visit)
		}
	case reflect.Map:
		for _, k := range sortedKeys(v) {
			walk(v.MapIndex(k.key), k.path(path), field, visit)
		}
	}
}

// clone is a deep copy of v. Empty lists and maps become nil: JSON leaves both
// away, so a spec must not mean something else by them.
func clone(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return v
		}
		c := reflect.New(v.Type().Elem())
		c.Elem().Set(clone(v.Elem()))
		return c
	case reflect.Struct:
		c := reflect.New(v.Type()).Elem()
		for i := range v.NumField() {
			c.Field(i).Set(clone(v.Field(i)))
		}
		return c
	case reflect.Slice:
		if v.Len() == 0 {
			return reflect.Zero(v.Type())
		}
		c := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			c.Index(i).Set(clone(v.Index(i)))
		}
		return c
	case reflect.Map:
		if v.Len() == 0 {
			return reflect.Zero(v.Type())
		}
		c := reflect.MakeMapWithSize(v.Type(), v.Len())
		for iter := v.MapRange(); iter.Next(); {
			c.SetMapIndex(iter.Key(), clone(iter.Value()))
		}
		return c
	}
	return v
}

// show is a value as a person would write it, bounded in length.
func show(value any) string {
	switch v := value.(type) {
	case nil:
		return ""
	case string:
		if v == "" {
			return "" // the reason says that it is missing
		}
		return strconv.Quote(shorten(v))
	}
	if v := reflect.ValueOf(value); v.Kind() == reflect.String {
		return show(v.String())
	}
	return fmt.Sprint(value)
}

func shorten(s string) string { return cut(s, 100) }

// cut bounds the length of s, between two characters.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	end := most - len("…")
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}
