//go:build linux

package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/volume"
)

// record is what is written down of a volume, or of a snapshot.
type record struct {
	Volume   volume.Volume `json:"volume"`             // of a snapshot: the volume that it was taken of
	Project  uint32        `json:"project,omitempty"`  // of the quota; 0 without
	Image    bool          `json:"image,omitempty"`    // size-mode auto chose an image; the choice is made once
	Snapshot string        `json:"snapshot,omitempty"` // that the volume was restored from
	Claim    volume.Claim  `json:"claim,omitzero"`     // that holds
}

func readRecord(dir string) (record, error) {
	path := filepath.Join(dir, "volume.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return record{}, &CorruptError{Path: path, Err: err}
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, &CorruptError{Path: path, Err: err}
	}
	return r, nil
}

// write makes r durable in dir, in place of one that is there.
func (r record) write(dir string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, "volume.json"), data)
}

// replaceFile writes a file so that a reader at any time, and after any crash,
// finds the old content or the new.
func replaceFile(path string, data []byte) error {
	next := path + ".next" // one writer at a time; a left one is overwritten
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// rename moves a folder and makes that durable on both sides.
func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return errors.Join(syncDir(filepath.Dir(to)), syncDir(filepath.Dir(from)))
}

func readNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// A mount is written down as the name of an empty file: making and deleting
// one is atomic, and there is no content that a crash could cut off. It need
// not outlive a crash of the machine, since the tasks do not either.

func mountFile(m volume.Mount) string {
	if m.ReadOnly {
		return url.PathEscape(m.Task) + ".ro"
	}
	return url.PathEscape(m.Task) + ".rw"
}

func parseMount(name, file string) (volume.Mount, bool) {
	escaped, readOnly := strings.CutSuffix(file, ".ro")
	if !readOnly {
		var ok bool
		if escaped, ok = strings.CutSuffix(file, ".rw"); !ok {
			return volume.Mount{}, false
		}
	}
	task, err := url.PathUnescape(escaped)
	return volume.Mount{Volume: name, Task: task, ReadOnly: readOnly}, err == nil
}

func checkMount(m volume.Mount) error {
	if errs := m.Validate(); len(errs) > 0 {
		return errs[0]
	}
	if len(url.PathEscape(m.Task)) > 120 {
		return &volume.SpecError{Volume: m.Volume, Field: "mount.task",
			Reason: fmt.Sprintf("%q is too long; at most 120 bytes, with those beyond letters and digits counted three times", m.Task)}
	}
	return nil
}

// removeTree deletes a folder of the driver's own. What is still mounted below
// it is unmounted first, so that deleting never reaches into it.
func removeTree(path string) error {
	if err := unmountBelow(path); err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("delete %s: %w", path, err)
	}
	return nil
}

func unmountBelow(path string) error {
	for {
		points, err := mountsBelow(path)
		if err != nil || len(points) == 0 {
			return err
		}
		// The last is the newest, and the one on top.
		if err := unix.Unmount(points[len(points)-1], unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", points[len(points)-1], err)
		}
	}
}

// mountsBelow lists the mount points at path and below it, oldest first, from
// /proc/self/mountinfo (proc(5)).
func mountsBelow(path string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape.Replace(fields[4])
		if point == path || strings.HasPrefix(point, path+"/") {
			points = append(points, point)
		}
	}
	return points, nil
}

// unescape undoes the octal escapes of mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// isMountPoint reports whether something is mounted exactly at path.
func isMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, errors.New("the kernel does not say what is a mount point; Linux 5.8 or newer is needed")
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
