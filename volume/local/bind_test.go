//go:build linux

package local

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/volume"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree makes files (with their own path as content) and, for "a -> b", links.
func tree(t *testing.T, base string, files []string, links map[string]string) {
	t.Helper()
	for _, f := range files {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(base, f)), 0o755))
		must(t, os.WriteFile(filepath.Join(base, f), []byte(f), 0o644))
	}
	for from, to := range links {
		must(t, os.Symlink(to, filepath.Join(base, from)))
	}
}

func TestBindStaysBelowItsRoots(t *testing.T) {
	base := testDir(t)
	tree(t, base, []string{"root/a/file", "root/b", "secret/key", "other/c"}, map[string]string{
		"root/inside":    "a",
		"root/up":        "..",
		"root/absolute":  filepath.Join(base, "secret"),
		"root/relative":  "../secret",
		"root/a/key":     "../../secret/key",
		"root/back":      filepath.Join(base, "root", "a"), // absolute, though it ends inside
		"root/volumes":   "../volumes",
		"root/loop":      "loop",
		"root/proc":      "/proc/self/root",
		"root/a/outside": "../inside/../../secret",
	})
	dir := filepath.Join(base, "volumes")
	d := mustOpen(t, dir, filepath.Join(base, "root"), filepath.Join(base, "other"))
	for source, want := range map[string]error{
		"root":                 nil,
		"root/a":               nil,
		"root/a/file":          nil,
		"root/inside":          nil,
		"root/inside/file":     nil,
		"root/a/../b":          nil,
		"other/c":              nil,
		"other/../root/b":      nil,
		"root/none":            volume.ErrNotFound,
		"root/b/x":             fs.ErrInvalid, // any other error: b is a file
		"secret":               volume.ErrForbidden,
		"root/../secret/key":   volume.ErrForbidden,
		"root-beside":          volume.ErrForbidden,
		"":                     volume.ErrForbidden,
		"root/up":              volume.ErrForbidden,
		"root/up/secret":       volume.ErrForbidden,
		"root/absolute/key":    volume.ErrForbidden,
		"root/relative":        volume.ErrForbidden,
		"root/a/key":           volume.ErrForbidden,
		"root/back":            volume.ErrForbidden,
		"root/volumes":         volume.ErrForbidden,
		"root/loop":            volume.ErrForbidden,
		"root/proc/etc/passwd": volume.ErrForbidden,
		"root/a/outside/key":   volume.ErrForbidden,
	} {
		for _, readOnly := range []bool{false, true} {
			b := volume.Bind{Source: base + "/" + source, Task: "t", ReadOnly: readOnly}
			path, err := d.Bind(t.Context(), b)
			switch {
			case want == fs.ErrInvalid:
				if err == nil {
					t.Errorf("Bind(%q) succeeded, want an error", source)
				}
			case !errors.Is(err, want):
				t.Errorf("Bind(%q) = %v, want %v", source, err, want)
			}
			if err == nil {
				sameContent(t, b.Source, path, readOnly)
			}
			must(t, d.Unbind(t.Context(), b))
		}
	}
	var spec *volume.SpecError
	if _, err := d.Bind(t.Context(), volume.Bind{Source: "root", Task: "t"}); !errors.As(err, &spec) {
		t.Errorf("Bind of a relative path = %v, want a *SpecError", err)
	}
	if left, err := readNames(d.path("binds")); len(left) > 0 || err != nil {
		t.Errorf("binds has %q, %v at the end, want nothing", left, err)
	}
	if _, err := os.Stat(filepath.Join(base, "root/a/file")); err != nil {
		t.Errorf("undoing binds deleted a file of the host: %v", err)
	}
}

// sameContent checks that path shows source, and can be written unless it is
// read-only.
func sameContent(t *testing.T, source, path string, readOnly bool) {
	t.Helper()
	a, err := os.Stat(source)
	must(t, err)
	b, err := os.Stat(path)
	must(t, err)
	if !os.SameFile(a, b) {
		t.Errorf("%s does not show %s", path, source)
	}
	if a.IsDir() {
		path = filepath.Join(path, "written")
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if readOnly != errors.Is(err, unix.EROFS) {
		t.Errorf("writing %s with read-only %v: %v", path, readOnly, err)
	}
	if err == nil {
		f.Close()
		if a.IsDir() {
			must(t, os.Remove(path))
		}
	}
}

// A refusal says what would be right.
func TestBindRefusalSaysWhatIsAllowed(t *testing.T) {
	for want, roots := range map[string][]string{
		`bind "/etc": is outside of the allowed roots; bind a path below one of ["/srv" "/mnt"]`:                                          {"/srv", "/mnt"},
		`bind "/etc": no path of the host is allowed; allow some by Options.BindRoots of volume/local, or local.WithBindRoots of a fleet`: nil,
	} {
		d := mustOpen(t, testDir(t), roots...)
		_, err := d.Bind(t.Context(), volume.Bind{Source: "/etc", Task: "t"})
		if !errors.Is(err, volume.ErrForbidden) || err.Error() != want {
			t.Errorf("Bind with roots %q: got %q, want %q", roots, err, want)
		}
	}
}

// The driver's own folder is no source, nor what holds it: a container must
// not reach other tasks' volumes.
func TestBindNotOfTheDriversOwn(t *testing.T) {
	base := testDir(t)
	dir := filepath.Join(base, "a", "volumes")
	d := mustOpen(t, dir, base)
	must(t, d.Create(t.Context(), volume.Volume{Name: "v"}))
	for _, source := range []string{base, base + "/a", dir, dir + "/volumes/v/data"} {
		if _, err := d.Bind(t.Context(), volume.Bind{Source: source, Task: "t"}); !errors.Is(err, volume.ErrForbidden) {
			t.Errorf("Bind(%q) = %v, want ErrForbidden", source, err)
		}
	}
	must(t, d.Remove(t.Context(), "v"))
}

// While somebody who may write below the root swaps a folder and a link that
// leads out, every bind shows the folder or is refused.
func TestBindAgainstRace(t *testing.T) {
	base := testDir(t)
	tree(t, base, []string{"root/real/name", "secret/name"}, map[string]string{"root/link": "../secret"})
	root := filepath.Join(base, "root")
	d := mustOpen(t, filepath.Join(base, "volumes"), root)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, root+"/real", unix.AT_FDCWD, root+"/link", unix.RENAME_EXCHANGE)
			}
		}
	})
	bound, refused := 0, 0
	b := volume.Bind{Source: root + "/real", Task: "t"}
	// Until both outcomes were seen often; the bound is for a broken driver.
	for n := 0; n < 100_000 && (bound < 50 || refused < 50); n++ {
		path, err := d.Bind(t.Context(), b)
		switch {
		case errors.Is(err, volume.ErrForbidden):
			refused++
		case err != nil:
			t.Errorf("Bind: %v", err)
		default:
			bound++
			if got, err := os.ReadFile(path + "/name"); string(got) != "root/real/name" {
				t.Fatalf("the bound path shows %q, %v: it leads out of the root", got, err)
			}
		}
		must(t, d.Unbind(t.Context(), b))
	}
	close(stop)
	wg.Wait()
	if bound < 50 || refused < 50 {
		t.Errorf("%d bound and %d refused, want many of both: either side of the race wins at times", bound, refused)
	}
}

// A bind that stays shows what it showed, whatever is renamed at its source.
func TestBindIsOfTheFileAndNotTheName(t *testing.T) {
	base := testDir(t)
	tree(t, base, []string{"root/a/name", "secret/name"}, nil)
	d := mustOpen(t, filepath.Join(base, "volumes"), filepath.Join(base, "root"))
	b := volume.Bind{Source: filepath.Join(base, "root/a"), Task: "t"}
	path, err := d.Bind(t.Context(), b)
	must(t, err)
	must(t, os.Rename(filepath.Join(base, "root/a"), filepath.Join(base, "root/b")))
	must(t, os.Symlink("../secret", filepath.Join(base, "root/a")))
	if got, err := os.ReadFile(filepath.Join(path, "name")); string(got) != "root/a/name" {
		t.Errorf("after its source was replaced, the bind shows %q, %v", got, err)
	}
	must(t, d.Unbind(t.Context(), b))
}

// What is mounted below a source is bound too, and read-only too.
func TestBindIsRecursive(t *testing.T) {
	base := testDir(t)
	tree(t, base, []string{"root/a/name"}, nil)
	sub := filepath.Join(base, "root/a/sub")
	must(t, os.Mkdir(sub, 0o755))
	must(t, unix.Mount("tmpfs", sub, "tmpfs", 0, ""))
	defer unix.Unmount(sub, 0)
	must(t, os.WriteFile(sub+"/deep", []byte("deep"), 0o600))
	d := mustOpen(t, filepath.Join(base, "volumes"), filepath.Join(base, "root"))
	b := volume.Bind{Source: filepath.Join(base, "root/a"), Task: "t", ReadOnly: true}
	path, err := d.Bind(t.Context(), b)
	must(t, err)
	if got, err := os.ReadFile(path + "/sub/deep"); string(got) != "deep" {
		t.Errorf("below the bind: %q, %v", got, err)
	}
	if err := os.WriteFile(path+"/sub/deep", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing a mount below a read-only bind = %v, want EROFS", err)
	}
	must(t, d.Unbind(t.Context(), b))
	if _, err := os.Stat(sub + "/deep"); err != nil {
		t.Errorf("undoing the bind unmounted the source's own: %v", err)
	}
}
