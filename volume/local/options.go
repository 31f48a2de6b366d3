//go:build linux

package local

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/orchestrate-go/orchestrate/volume"
)

// The keys of [volume.Volume].Options that the driver knows.
const (
	OptionType     = "type"      // "dir" (default) or "tmpfs"
	OptionSizeMode = "size-mode" // "auto" (default), "quota", "loop" or "none"
	OptionUID      = "uid"       // owner of the volume's root; default 0
	OptionGID      = "gid"       // its group; default 0
	OptionMode     = "mode"      // its permissions in octal; default 0755, of a tmpfs 1777
)

// minImage is the least Size of an image: below it ext4 has no room for its
// own.
const minImage = 1 << 20

type kind int

const (
	kindDir kind = iota
	kindLoop
	kindTmpfs
)

func (r record) kind() kind {
	switch {
	case r.Volume.Options[OptionType] == "tmpfs":
		return kindTmpfs
	case r.Image || r.Volume.Options[OptionSizeMode] == "loop":
		return kindLoop
	}
	return kindDir
}

// enforced reports whether the filesystem holds the volume to its Size.
func (r record) enforced() bool {
	return r.Volume.Size > 0 && (r.kind() != kindDir || r.Project != 0 && r.Volume.Options[OptionSizeMode] != "none")
}

// autoImage reports whether size-mode auto makes an image for a new volume: it
// has a Size, and nothing else here would hold it to that.
func (d *Driver) autoImage(v volume.Volume) bool {
	mode := v.Options[OptionSizeMode]
	return (mode == "" || mode == "auto") && v.Options[OptionType] != "tmpfs" &&
		v.Size >= minImage && !d.quota && d.images
}

// check refuses a spec that this driver cannot provide.
func (d *Driver) check(v volume.Volume) error {
	if errs := v.Validate(); len(errs) > 0 {
		return errs[0]
	}
	refuse := func(field, format string, args ...any) error {
		return &volume.SpecError{Volume: v.Name, Field: field, Reason: fmt.Sprintf(format, args...)}
	}
	for _, key := range slices.Sorted(maps.Keys(v.Options)) {
		value, field := v.Options[key], "options."+key
		switch key {
		case OptionType:
			if value != "dir" && value != "tmpfs" {
				return refuse(field, "%q is not a type; it is dir or tmpfs", value)
			}
		case OptionSizeMode:
			if !slices.Contains([]string{"auto", "quota", "loop", "none"}, value) {
				return refuse(field, "%q is not a way to hold a size; it is auto, quota, loop or none", value)
			}
		case OptionUID, OptionGID:
			// The highest is "no change" to chown(2).
			if id, err := strconv.ParseUint(value, 10, 32); err != nil || id == 1<<32-1 {
				return refuse(field, "%q is not an id; it is a number from 0 to 4294967294", value)
			}
		case OptionMode:
			if _, err := parseMode(value); err != nil {
				return refuse(field, "%q are not permissions; they are octal, up to 7777", value)
			}
		default:
			return refuse(field, "is not an option of the local driver; it has type, size-mode, uid, gid and mode")
		}
	}
	mode := v.Options[OptionSizeMode]
	if v.Options[OptionType] == "tmpfs" && mode != "" && mode != "auto" {
		return refuse("options."+OptionSizeMode, "does not go with type tmpfs, which holds its size by itself")
	}
	switch {
	case mode == "quota" && v.Size == 0:
		return refuse("size", "is not set; size-mode quota needs one")
	case mode == "quota" && !d.quota:
		return refuse("options."+OptionSizeMode, "the filesystem of %s has no project quotas; mount ext4 or xfs with prjquota, or use size-mode loop", d.dir)
	case mode == "loop" && v.Size < minImage:
		return refuse("size", "%d is too small; size-mode loop needs at least %d bytes", v.Size, minImage)
	}
	return nil
}

func parseMode(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 8, 32)
	if err == nil && n > 0o7777 {
		err = strconv.ErrRange
	}
	return uint32(n), err
}

// owner of the volume's root. The spec has been checked.
func owner(v volume.Volume) (uid, gid int) {
	uid, _ = strconv.Atoi(v.Options[OptionUID]) // unset is 0
	gid, _ = strconv.Atoi(v.Options[OptionGID])
	return uid, gid
}

// own sets owner and permissions of a new volume's root.
func own(path string, v volume.Volume) error {
	uid, gid := owner(v)
	if err := os.Lchown(path, uid, gid); err != nil {
		return err
	}
	mode := uint32(0o755)
	if s, ok := v.Options[OptionMode]; ok {
		mode, _ = parseMode(s)
	}
	return chmod(path, mode)
}
