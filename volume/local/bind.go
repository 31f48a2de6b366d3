//go:build linux

package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/volume"
)

// Bind implements [volume.Binder].
//
// The source is opened below its root by openat2(2) with RESOLVE_BENEATH: the
// kernel itself refuses each step that leads out, by "..", by a symbolic link
// or by a rename in between. What was opened is then mounted at a path of the
// driver's own, and that path is the answer. Returning the source's own path,
// checked, would leave a race: the runtime resolves it again, later.
func (d *Driver) Bind(ctx context.Context, b volume.Bind) (string, error) {
	if b.Task == "" {
		return "", &volume.SpecError{Volume: b.Source, Field: "bind.task", Reason: "is empty; name the task"}
	}
	if !filepath.IsAbs(b.Source) {
		return "", &volume.SpecError{Volume: b.Source, Field: "bind.source", Reason: "is not an absolute path"}
	}
	key := bindKey(b)
	unlock, err := d.keyed.lock(ctx, "b:"+key)
	if err != nil {
		return "", err
	}
	defer unlock()
	path, err := d.bind(b, key)
	var forbidden *volume.ForbiddenError
	if err != nil && !errors.As(err, &forbidden) {
		err = fmt.Errorf("bind %q for task %q: %w", b.Source, b.Task, err)
	}
	return path, err
}

func (d *Driver) bind(b volume.Bind, key string) (path string, err error) {
	target := d.path("binds", key)
	if mounted, err := isMountPoint(target); mounted || err != nil {
		return target, err
	}
	source, err := d.openBeneath(b.Source)
	if err != nil {
		return "", err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return "", err
	}
	if inside, err := d.shows(source, info); err != nil {
		return "", err
	} else if inside {
		return "", &volume.ForbiddenError{Source: b.Source, Roots: d.roots, Reason: "holds the volumes of this driver"}
	}
	data, err := json.Marshal(b)
	if err != nil {
		return "", err
	}
	d.step("bind: record")
	if err := replaceFile(target+".json", data); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.unbind(key))
		}
	}()
	d.step("bind: mount point")
	// A cut off bind may have left one of the other kind.
	if err := dropMountPoint(target); err != nil {
		return "", err
	}
	if info.IsDir() {
		err = os.Mkdir(target, 0o700)
	} else {
		err = touch(target)
	}
	if err != nil {
		return "", err
	}
	d.step("bind: mount")
	return target, bindFD(int(source.Fd()), target, b.ReadOnly)
}

// openBeneath opens path, without the right to read it, below a bind root.
func (d *Driver) openBeneath(path string) (*os.File, error) {
	clean := filepath.Clean(path)
	refused := &volume.ForbiddenError{Source: path, Roots: d.roots, Reason: "is outside of the allowed roots"}
	if len(d.roots) == 0 {
		refused.Reason = "no path of the host is allowed; allow some by Options.BindRoots of volume/local, or local.WithBindRoots of a fleet"
	}
	for _, root := range d.roots {
		rel, err := filepath.Rel(root, clean)
		if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			continue
		}
		f, err := openAt(root, rel)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP):
			refused.Reason = "leads out of the allowed roots by a symbolic link, or by one that is absolute"
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%w: %w", volume.ErrNotFound, err)
		default:
			return nil, err
		}
	}
	return nil, refused
}

func openAt(root, rel string) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	for range 128 {
		fd, err := unix.Openat2(dir, rel, how)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue // a rename somewhere raced with ".."; the kernel asks to try again
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: filepath.Join(root, rel), Err: err}
		}
		return os.NewFile(uintptr(fd), filepath.Join(root, rel)), nil
	}
	return nil, &os.PathError{Op: "open", Path: filepath.Join(root, rel), Err: unix.EAGAIN}
}

// shows reports whether the opened folder is the driver's own, is in it or
// holds it: a container must not get at other tasks' volumes by a bind.
func (d *Driver) shows(source *os.File, info fs.FileInfo) (bool, error) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", source.Fd()))
	if err != nil {
		return false, err
	}
	if path == d.dir || strings.HasPrefix(path, d.dir+"/") {
		return true, nil
	}
	for dir := d.dir; ; dir = filepath.Dir(dir) {
		if own, err := os.Stat(dir); err == nil && os.SameFile(own, info) {
			return true, nil
		}
		if dir == "/" {
			return false, nil
		}
	}
}

// Unbind implements [volume.Binder].
func (d *Driver) Unbind(ctx context.Context, b volume.Bind) error {
	key := bindKey(b)
	unlock, err := d.keyed.lock(ctx, "b:"+key)
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.unbind(key); err != nil {
		return fmt.Errorf("unbind %q of task %q: %w", b.Source, b.Task, err)
	}
	return nil
}

func (d *Driver) unbind(key string) error {
	d.step("unbind: mount")
	if err := dropMountPoint(d.path("binds", key)); err != nil {
		return err
	}
	d.step("unbind: record")
	if err := os.Remove(d.path("binds", key+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Binds implements [volume.Binder].
func (d *Driver) Binds(ctx context.Context) ([]volume.Bind, error) {
	names, err := readNames(d.path("binds"))
	if err != nil {
		return nil, err
	}
	var binds []volume.Bind
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !strings.HasSuffix(name, ".json") {
			continue
		}
		data, err := os.ReadFile(d.path("binds", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // undone since
		}
		var b volume.Bind
		if err := errors.Join(err, json.Unmarshal(data, &b)); err != nil {
			return nil, &CorruptError{Path: d.path("binds", name), Err: err}
		}
		binds = append(binds, b)
	}
	slices.SortFunc(binds, volume.CompareBinds)
	return binds, nil
}

// sweepBinds drops what a cut off Bind or Unbind left without a record.
func (d *Driver) sweepBinds() error {
	names, err := readNames(d.path("binds"))
	if err != nil {
		return err
	}
	for _, name := range names {
		switch key, of := strings.CutSuffix(name, ".json"); {
		case strings.HasSuffix(name, ".next"):
			err = os.Remove(d.path("binds", name))
		case !of && !slices.Contains(names, key+".json"):
			err = dropMountPoint(d.path("binds", name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bindKey is a file name for the bind.
func bindKey(b volume.Bind) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %v", b.Task, b.Source, b.ReadOnly))
	return hex.EncodeToString(sum[:16])
}
