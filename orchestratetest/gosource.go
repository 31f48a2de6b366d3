package orchestratetest

import (
	"fmt"
	"go/ast"
	"go/format"
	"path"
	"reflect"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// goTest is a Go test that runs a scenario with a script in place of what is
// random. Functions that have no name of their own cannot be printed: a comment
// stands for them.
func goTest(s Scenario, failure *Violation) string {
	p := &printer{imports: map[string]bool{"testing": true, self: true}}
	body := p.value(reflect.ValueOf(s), 1)
	var b strings.Builder
	fmt.Fprintf(&b, "package %s\n\nimport (\n", "found_test")
	for _, i := range slices.Sorted(mapKeys(p.imports)) {
		fmt.Fprintf(&b, "\t%q\n", i)
	}
	fmt.Fprintf(&b, ")\n\n// TestFound was found by seed %d and made short. It fails because\n// %s.\nfunc TestFound(t *testing.T) {\n\torchestratetest.Run(t, %s)\n}\n",
		s.Seed, strings.ReplaceAll(failure.Error(), "\n", " "), body)
	source, err := format.Source([]byte(b.String()))
	if err != nil {
		return b.String() // it is to be read at least
	}
	return string(source)
}

const self = "github.com/orchestrate-go/orchestrate/orchestratetest"

func mapKeys(m map[string]bool) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// goDuration is a duration as an expression.
func goDuration(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Hour, "time.Hour"}, {time.Minute, "time.Minute"}, {time.Second, "time.Second"}, {time.Millisecond, "time.Millisecond"}} {
		switch {
		case d == u.unit:
			return u.name
		case d != 0 && d%u.unit == 0:
			return fmt.Sprintf("%d * %s", d/u.unit, u.name)
		}
	}
	return strconv.FormatInt(int64(d), 10)
}

// printer prints values as Go expressions, without what is zero.
type printer struct{ imports map[string]bool }

func (p *printer) typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Slice:
		if t.Name() == "" {
			return "[]" + p.typeName(t.Elem())
		}
	case reflect.Map:
		if t.Name() == "" {
			return "map[" + p.typeName(t.Key()) + "]" + p.typeName(t.Elem())
		}
	case reflect.Pointer:
		return "*" + p.typeName(t.Elem())
	}
	if t.PkgPath() == "" {
		return t.String()
	}
	p.imports[t.PkgPath()] = true
	return path.Base(t.PkgPath()) + "." + t.Name()
}

// element is a value whose type its slice or map says.
func (p *printer) element(v reflect.Value, depth int) string {
	x := p.value(v, depth)
	if v.Kind() == reflect.Struct {
		return strings.TrimPrefix(x, p.typeName(v.Type()))
	}
	return x
}

func (p *printer) value(v reflect.Value, depth int) string {
	tabs := strings.Repeat("\t", depth)
	switch v.Type() {
	case reflect.TypeFor[time.Duration]():
		p.imports["time"] = true
		return goDuration(time.Duration(v.Int()))
	case reflect.TypeFor[Invariant](), reflect.TypeFor[Eventual]():
		if source := v.FieldByName("source").String(); source != "" {
			if strings.Contains(source, "time.") {
				p.imports["time"] = true
			}
			return source
		}
		if p.value(v.FieldByName("Check"), depth) == "" {
			return ""
		}
	}
	switch v.Kind() {
	case reflect.Interface:
		return p.value(v.Elem(), depth)
	case reflect.Pointer:
		if v.Elem().Kind() == reflect.Struct {
			return "&" + p.value(v.Elem(), depth)
		}
		return "new(" + p.typeName(v.Type().Elem()) + "(" + p.value(v.Elem(), depth) + "))"
	case reflect.Struct:
		var b strings.Builder
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if !f.IsExported() || v.Field(i).IsZero() {
				continue
			}
			x := p.value(v.Field(i), depth+1)
			if x == "" {
				fmt.Fprintf(&b, "%s\t// %s is a function without a name: put yours here\n", tabs, f.Name)
				continue
			}
			fmt.Fprintf(&b, "%s\t%s: %s,\n", tabs, f.Name, x)
		}
		if b.Len() == 0 {
			return p.typeName(v.Type()) + "{}"
		}
		return p.typeName(v.Type()) + "{\n" + b.String() + tabs + "}"
	case reflect.Slice:
		var b strings.Builder
		for i := range v.Len() {
			if x := p.element(v.Index(i), depth+1); x != "" {
				fmt.Fprintf(&b, "%s\t%s,\n", tabs, x)
			} else {
				fmt.Fprintf(&b, "%s\t// a function without a name: put yours here\n", tabs)
			}
		}
		return p.typeName(v.Type()) + "{\n" + b.String() + tabs + "}"
	case reflect.Map:
		var lines []string
		for _, k := range v.MapKeys() {
			x := p.element(v.MapIndex(k), depth+1)
			if x == "" {
				lines = append(lines, fmt.Sprintf("%s\t// %s: a function without a name: put yours here\n", tabs, p.value(k, depth+1)))
				continue
			}
			lines = append(lines, fmt.Sprintf("%s\t%s: %s,\n", tabs, p.value(k, depth+1), x))
		}
		slices.Sort(lines)
		return p.typeName(v.Type()) + "{\n" + strings.Join(lines, "") + tabs + "}"
	case reflect.Func:
		// Of PATH/PACKAGE.NAME; what is no plain name has no source.
		name := goruntime.FuncForPC(v.Pointer()).Name()
		slash := strings.LastIndexByte(name, '/') + 1
		pkg, fn, ok := strings.Cut(name[slash:], ".")
		switch {
		case !ok || strings.ContainsAny(fn, ".()-"):
			return ""
		case strings.HasSuffix(pkg, "_test") || pkg == "main" || !ast.IsExported(fn):
			return fn // where it is pasted
		}
		p.imports[name[:slash]+pkg] = true
		return pkg + "." + fn
	case reflect.String:
		return strconv.Quote(v.String())
	default:
		return fmt.Sprint(v.Interface())
	}
}
