package orchestrate_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/orchestrate-go/orchestrate"

// core are the packages that cost their importer nothing but the standard
// library.
var core = []string{".", "./autoscale", "./scheduler", "./health", "./network", "./volume", "./runtime", "./store"}

func TestCoreImportsTheStandardLibraryAlone(t *testing.T) {
	for _, pkg := range core {
		cmd := exec.Command("go", append([]string{"list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}"}, pkg)...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list %s: %v\n%s", pkg, err, stderr.String())
		}
		deps := strings.Fields(string(out))
		if len(deps) == 0 {
			t.Fatalf("go list found nothing for %s, not even itself", pkg)
		}
		for _, dep := range deps {
			if !allowed(pkg, dep) {
				t.Errorf("%s depends on %s; what the core needs from outside goes into a leaf package behind an interface", pkg, dep)
			}
		}
	}
}

// allowed reports whether a core package may depend on dep: the interface
// packages on themselves alone, the root on all of them and on what is
// internal to this module.
func allowed(pkg, dep string) bool {
	path := func(pkg string) string { return strings.TrimSuffix(module+"/"+strings.TrimPrefix(pkg, "./"), "/.") }
	if pkg != "." {
		return dep == path(pkg)
	}
	if strings.HasPrefix(dep, module+"/internal/") {
		return true
	}
	for _, c := range core {
		if dep == path(c) {
			return true
		}
	}
	return false
}

// TestEtcdIsLinkedByWhoImportsIt holds the same for the one dependency that is
// larger than all others together: a program on one machine does without it,
// and a client does without the server.
func TestEtcdIsLinkedByWhoImportsIt(t *testing.T) {
	for pkg, unwanted := range map[string]string{
		"./local":                "go.etcd.io/etcd/",
		"./node":                 "go.etcd.io/etcd/",
		"./examples/quickstart":  "go.etcd.io/etcd/",
		"./store/etcd":           "go.etcd.io/etcd/server/",
		"./store/bolt":           "go.etcd.io/etcd/",
		"./store/internal/table": "go.etcd.io/etcd/",
	} {
		out, err := exec.Command("go", "list", "-deps", pkg).Output()
		if err != nil || !strings.Contains(string(out), module) {
			t.Fatalf("go list %s: %v", pkg, err)
		}
		for dep := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(dep, unwanted) {
				t.Errorf("%s depends on %s", pkg, dep)
				break
			}
		}
	}
}

func TestCoreBuildsEverywhere(t *testing.T) {
	for _, system := range []string{"linux", "darwin", "windows"} {
		cmd := exec.Command("go", append([]string{"build"}, core...)...)
		cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH=amd64", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("GOOS=%s go build: %v\n%s", system, err, out)
		}
	}
}

// TestLibraryHasNoSideEffects reads every package that is not a program. Its
// importer decides about flags, signals and the end of the process, and two
// fleets in one process share no state.
func TestLibraryHasNoSideEffects(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || isModule(path)) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		mistakes, err := sideEffects(path, source)
		for _, m := range mistakes {
			t.Error(m)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 20 {
		t.Errorf("read %d files; the walk is broken", files)
	}
}

// isModule reports whether a folder is a module of its own, such as the
// benchmarks.
func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// sideEffects finds what library code must not do.
func sideEffects(path string, source []byte) ([]string, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path, source, parser.SkipObjectResolution)
	if err != nil || file.Name.Name == "main" {
		return nil, err
	}
	var mistakes []string
	add := func(n ast.Node, what string) {
		mistakes = append(mistakes, fset.Position(n.Pos()).String()+": "+what)
	}
	imports := map[string]string{} // name in this file to path
	for _, i := range file.Imports {
		p := strings.Trim(i.Path.Value, `"`)
		name := p[strings.LastIndex(p, "/")+1:]
		if i.Name != nil {
			name = i.Name.Name
		}
		imports[name] = p
		switch p {
		case "flag":
			add(i, "flags are the program's; take options instead")
		case "os/signal":
			add(i, "signals are the program's; end with the context instead")
		}
	}
	calls := map[string]string{
		"os.Exit":             "return an error instead",
		"log.Fatal":           "return an error instead",
		"log.Fatalf":          "return an error instead",
		"log.Fatalln":         "return an error instead",
		"log/slog.SetDefault": "take a logger instead",
		"log.SetOutput":       "take a logger instead",
		"os.Chdir":            "the working directory is the whole process's",
		"os.Setenv":           "the environment is the whole process's",
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && imports[x.Name] != "" {
				if why, found := calls[imports[x.Name]+"."+sel.Sel.Name]; found {
					add(n, x.Name+"."+sel.Sel.Name+": "+why)
				}
			}
		}
		return true
	})
	for _, decl := range file.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			if decl.Recv == nil && decl.Name.Name == "init" {
				add(decl, "init runs whether it is wanted or not; let a constructor do it")
			}
		case *ast.GenDecl:
			if decl.Tok != token.VAR {
				continue
			}
			for _, spec := range decl.Specs {
				if v := spec.(*ast.ValueSpec); isState(v, imports) {
					add(v, v.Names[0].Name+" is state of the whole process; keep it in a value that its owner makes")
				}
			}
		}
	}
	return mistakes, nil
}

// isState reports whether a package's variable is of a kind that is there to
// be changed: a lock, an atomic value, a channel, or a map or value made empty.
func isState(v *ast.ValueSpec, imports map[string]string) bool {
	synced := func(e ast.Expr) bool {
		if index, ok := e.(*ast.IndexExpr); ok { // such as atomic.Pointer[T]
			e = index.X
		}
		sel, ok := e.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		x, ok := sel.X.(*ast.Ident)
		return ok && (imports[x.Name] == "sync" || imports[x.Name] == "sync/atomic")
	}
	if v.Type != nil {
		if _, ok := v.Type.(*ast.MapType); ok && len(v.Values) == 0 {
			return true
		}
		if synced(v.Type) {
			return true
		}
	}
	for _, value := range v.Values {
		switch value := value.(type) {
		case *ast.CallExpr:
			if f, ok := value.Fun.(*ast.Ident); ok && (f.Name == "make" || f.Name == "new") {
				return true
			}
		case *ast.CompositeLit:
			if synced(value.Type) {
				return true
			}
		}
	}
	return false
}

// TestSideEffectsAreFound shows that the test above can fail.
func TestSideEffectsAreFound(t *testing.T) {
	for _, code := range []string{
		`import "flag"; var _ = flag.Arg`,
		`import "os/signal"; var _ = signal.Notify`,
		`import "os"; func f() { os.Exit(1) }`,
		`import exit "os"; func f() { exit.Exit(1) }`,
		`import "log"; func f() { log.Fatalf("x") }`,
		`import "log/slog"; func f() { slog.SetDefault(nil) }`,
		`func init() {}`,
		`import "sync"; var mu sync.Mutex`,
		`import "sync/atomic"; var p atomic.Pointer[int]`,
		`var m = make(map[string]int)`,
		`var m map[string]int`,
	} {
		if mistakes, err := sideEffects("x.go", []byte("package x\n"+code)); err != nil || len(mistakes) != 1 {
			t.Errorf("%s: got %q, %v, want one mistake", code, mistakes, err)
		}
	}
	for _, code := range []string{
		`import "errors"; var ErrX = errors.New("x")`,
		`var names = map[string]int{"a": 1}`,
		`import "os"; func f() { os.Getpid() }; type T struct{}; func (T) init() {}`,
	} {
		if mistakes, err := sideEffects("x.go", []byte("package x\n"+code)); err != nil || len(mistakes) != 0 {
			t.Errorf("%s: got %q, %v, want no mistake", code, mistakes, err)
		}
	}
	if mistakes, err := sideEffects("x.go", []byte("package main\nfunc init() {}")); err != nil || len(mistakes) != 0 {
		t.Errorf("a program: got %q, %v, want that it may", mistakes, err)
	}
}
