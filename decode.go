package orchestrate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxDocumentBytes is the largest JSON document that [DecodeService] reads. It
// leaves room for the white space that a stored spec does not have.
const MaxDocumentBytes = 4 * MaxSpecBytes

// DecodeService reads a Service from JSON, fills in its defaults and validates
// it. The error is a [*ValidationError] with every mistake, those of form
// included.
//
// It is strict, since a field that is misspelt and ignored is worse than one
// that is refused: names are the ones of the json tags with their case, and an
// unknown or repeated one is a mistake, as are a value of the wrong type,
// anything after the document and text that is not UTF-8. A null means that
// the field is left away. Durations are strings as [time.ParseDuration] reads
// them, such as "10s" or "1m30s"; a number, the form in which
// [encoding/json] writes a [time.Duration], is nanoseconds.
func DecodeService(data []byte) (Service, error) {
	var s Service
	problems := decode(data, reflect.ValueOf(&s).Elem())
	s = s.WithDefaults()
	if problems = judged(problems, s.problems); len(problems) > 0 {
		c := checks{problems: problems}
		return Service{}, &ValidationError{Object: s.object(), Problems: c.sorted(reflect.ValueOf(s))}
	}
	return s, nil
}

// within reports whether path or one that it is in is among paths.
func within(paths map[string]bool, path string) bool {
	for path != "" {
		if paths[path] {
			return true
		}
		path = parent(path)
	}
	return false
}

// decode reads a JSON document into v, and returns all mistakes of form. One
// with an empty path made the document unreadable.
func decode(data []byte, v reflect.Value) []Problem {
	fail := func(reason string, args ...any) []Problem {
		return []Problem{{Reason: fmt.Sprintf(reason, args...)}}
	}
	if len(data) > MaxDocumentBytes {
		return fail("is %d bytes; at most %d", len(data), MaxDocumentBytes)
	}
	if !utf8.Valid(data) {
		return fail("is not valid UTF-8")
	}
	// Checking the syntax first keeps partial specs from being judged. It
	// also bounds the depth, to encoding/json's 10,000.
	if err := json.Unmarshal(data, new(json.RawMessage)); err != nil {
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			read := data[:max(min(int(syntax.Offset), len(data))-1, 0)] // Offset counts the byte that is wrong
			line := 1 + bytes.Count(read, []byte("\n"))
			column := len(read) - bytes.LastIndexByte(read, '\n')
			return fail("is not JSON: line %d, column %d: %v", line, column, err)
		}
		return fail("is not JSON: %v", err)
	}
	d := decoder{json: json.NewDecoder(bytes.NewReader(data))}
	d.json.UseNumber()
	d.value(v, "")
	return d.problems
}

// decoder reads values token by token from a document that is known to be
// well-formed. It recurses only as deep as the Go types are.
type decoder struct {
	json     *json.Decoder
	problems []Problem
}

func (d *decoder) add(path, reason string, args ...any) {
	d.problems = append(d.problems, Problem{Path: path, Reason: fmt.Sprintf(reason, args...)})
}

func (d *decoder) token() json.Token {
	t, err := d.json.Token()
	if err != nil {
		panic("orchestrate: well-formed JSON cannot be read: " + err.Error())
	}
	return t
}

// value reads the next value into v.
func (d *decoder) value(v reflect.Value, path string) { d.convert(d.token(), v, path) }

func (d *decoder) convert(t json.Token, v reflect.Value, path string) {
	if t == nil {
		if path == "" {
			d.add(path, "is null; give an object")
		}
		return // as if left away
	}
	delim, _ := t.(json.Delim)
	switch {
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.convert(t, v.Elem(), path)
	case v.Kind() == reflect.Struct && delim == '{':
		d.object(v, path)
	case v.Kind() == reflect.Map && delim == '{':
		d.entries(v, path)
	case v.Kind() == reflect.Slice && delim == '[':
		for i := 0; d.json.More(); i++ {
			element := reflect.New(v.Type().Elem()).Elem()
			d.value(element, at(path, i))
			v.Set(reflect.Append(v, element))
		}
		d.token()
	case delim != 0:
		d.skip(1)
		d.add(path, "is %s; give %s", kindOf(t), wanted(v))
	default:
		d.scalar(t, v, path)
	}
}

func (d *decoder) object(v reflect.Value, path string) {
	fields := map[string]reflect.Value{}
	eachField(v, func(name string, f reflect.Value) { fields[name] = f })
	seen := map[string]bool{}
	for d.json.More() {
		given := d.token().(string)
		name := given
		if _, ok := fields[name]; !ok {
			name = untagged(v.Type(), given)
		}
		field, ok := fields[name]
		switch {
		case !ok:
			d.add(member(path, given), "%s", unknown(given, fields))
			d.skip(0)
		case seen[name]:
			d.add(member(path, given), "is given twice; keep one")
			d.skip(0)
		default:
			seen[name] = true
			d.value(field, join(path, name))
		}
	}
	d.token()
}

// member is the path of a field that may have any name.
func member(path, name string) string {
	if name != "" && only(name, func(b byte) bool { return isAlnum(b) || b == '_' || b == '-' }) && len(name) <= 64 {
		return join(path, name)
	}
	return atKey(path, name)
}

// untagged finds the field that encoding/json writes as name because it has
// no tag, so that everything written can be read.
func untagged(t reflect.Type, name string) string {
	if f, ok := t.FieldByName(name); ok && f.IsExported() && !f.Anonymous && f.Tag.Get("json") == "" {
		return fieldName(f)
	}
	return name
}

func (d *decoder) entries(v reflect.Value, path string) {
	v.Set(reflect.MakeMap(v.Type()))
	for d.json.More() {
		key := d.token().(string)
		k := reflect.ValueOf(key).Convert(v.Type().Key())
		if v.MapIndex(k).IsValid() {
			d.add(atKey(path, key), "is given twice; keep one")
			d.skip(0)
			continue
		}
		element := reflect.New(v.Type().Elem()).Elem()
		d.value(element, atKey(path, key))
		v.SetMapIndex(k, element)
	}
	d.token()
}

// skip reads over the next value, or to the end of the depth arrays and
// objects that are open.
func (d *decoder) skip(depth int) {
	for {
		switch d.token() {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return
		}
	}
}

func (d *decoder) scalar(t json.Token, v reflect.Value, path string) {
	wrong := func() { d.add(path, "is %s; give %s", kindOf(t), wanted(v)) }
	switch t := t.(type) {
	case bool:
		if v.Kind() != reflect.Bool {
			wrong()
			return
		}
		v.SetBool(t)
	case string:
		switch {
		case v.Type() == durationType:
			n, err := time.ParseDuration(t)
			if err != nil {
				d.problems = append(d.problems, Problem{Path: path, Value: show(t), Reason: "is not a duration; write such as \"10s\" or \"1m30s\""})
				return
			}
			v.SetInt(int64(n))
		case v.Kind() == reflect.String:
			v.SetString(t)
		default:
			wrong()
		}
	case json.Number:
		switch {
		case v.Type() == amountType:
			if _, err := strconv.Atoi(t.String()); err != nil {
				wrong()
				return
			}
			v.SetString(t.String())
		case v.CanInt():
			n, err := strconv.ParseInt(t.String(), 10, v.Type().Bits())
			if err != nil {
				wrong()
				return
			}
			v.SetInt(n)
		case v.CanFloat():
			x, err := t.Float64()
			if err != nil {
				wrong()
				return
			}
			v.SetFloat(x)
		case v.CanUint():
			n, err := strconv.ParseUint(t.String(), 10, v.Type().Bits())
			if err != nil {
				wrong()
				return
			}
			v.SetUint(n)
		default:
			wrong()
		}
	}
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	amountType   = reflect.TypeFor[Amount]()
)

// kindOf names a value in an error.
func kindOf(t json.Token) string {
	switch t := t.(type) {
	case json.Delim:
		if t == '{' {
			return "an object"
		}
		return "a list"
	case bool:
		return strconv.FormatBool(t)
	case json.Number:
		return "the number " + shorten(t.String())
	case string:
		return "the text " + strconv.Quote(shorten(t))
	}
	return "null"
}

// wanted says what a Go value can be read from.
func wanted(v reflect.Value) string {
	switch {
	case v.Type() == durationType:
		return `a duration such as "10s"`
	case v.Type() == amountType:
		return `a whole number, or a share such as "25%"`
	case v.CanInt():
		bits := v.Type().Bits()
		return fmt.Sprintf("a whole number from %d to %d", int64(-1)<<(bits-1), int64(uint64(1)<<(bits-1)-1))
	case v.CanUint():
		return fmt.Sprintf("a whole number from 0 to %d", ^uint64(0)>>(64-v.Type().Bits()))
	case v.CanFloat():
		return "a number"
	case v.Kind() == reflect.Bool:
		return "true or false"
	case v.Kind() == reflect.Slice:
		return "a list"
	case v.Kind() == reflect.String:
		return "a text in quotes"
	}
	return "an object"
}

const unknownField = "is not a field"

// unknown says which field may have been meant.
func unknown(name string, fields map[string]reflect.Value) string {
	best, least := "", 3
	for _, f := range keysOf(fields) {
		n := distance(strings.ToLower(name), strings.ToLower(f))
		if n < least && n < len(f) {
			best, least = f, n
		}
	}
	if best != "" {
		return fmt.Sprintf("%s; did you mean %q?", unknownField, best)
	}
	return fmt.Sprintf("%s; there are %s", unknownField, strings.Join(keysOf(fields), ", "))
}

// distance is the Levenshtein distance, for names; those that are too long to
// be a slip are far.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
