//go:build linux

package containerd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// userTable remembers the users of an image that were looked up.
type userTable struct {
	mu    sync.Mutex
	known map[string]specs.User
}

// user resolves user[:group] with the passwd and group files of the image, as
// the OCI image specification's config.User says. A number need not be in the
// files.
func (b *bundle) user(want string) (specs.User, error) {
	t := b.users
	t.mu.Lock()
	defer t.mu.Unlock()
	if u, ok := t.known[want]; ok {
		return u, nil
	}
	var u specs.User
	err := b.withLayers(func(layers []string) (err error) {
		u, err = resolveUser(want, func(name string) ([][]string, error) { return readTable(layers, name) })
		return err
	})
	if err != nil {
		return u, err
	}
	t.known[want] = u
	return u, nil
}

// withLayers calls do with the folders of the image's layers, the top one
// first, or with the one folder where all of them are mounted meanwhile.
func (b *bundle) withLayers(do func(layers []string) error) error {
	if len(b.mounts) == 0 {
		return do(b.lower)
	}
	return mount.WithReadonlyTempMount(context.Background(), b.mounts, func(root string) error {
		return do([]string{root})
	})
}

func resolveUser(want string, table func(name string) ([][]string, error)) (specs.User, error) {
	name, group, hasGroup := strings.Cut(want, ":")
	if name == "" {
		name = "0"
	}
	passwd, err := table("etc/passwd")
	if err != nil {
		return specs.User{}, err
	}
	groups, err := table("etc/group")
	if err != nil {
		return specs.User{}, err
	}
	var u specs.User
	uid, numErr := parseID(name)
	// name:password:uid:gid:… (passwd(5))
	i := slices.IndexFunc(passwd, func(f []string) bool {
		return len(f) >= 4 && (f[0] == name || numErr == nil && f[2] == strconv.FormatUint(uint64(uid), 10))
	})
	login := ""
	switch {
	case i >= 0:
		login = passwd[i][0]
		if u.UID, err = parseID(passwd[i][2]); err != nil {
			return u, fmt.Errorf("/etc/passwd of the image: user %s: %w", login, err)
		}
		if u.GID, err = parseID(passwd[i][3]); err != nil {
			return u, fmt.Errorf("/etc/passwd of the image: user %s: %w", login, err)
		}
	case numErr == nil:
		u.UID = uid
	default:
		return u, fmt.Errorf("user %q is not in the image's /etc/passwd: want one that is, or a number", name)
	}
	u.AdditionalGids = []uint32{u.GID}
	if hasGroup {
		// A group that is asked for replaces the user's own, all of them.
		if u.GID, err = resolveGroup(group, groups); err != nil {
			return u, err
		}
		u.AdditionalGids = []uint32{u.GID}
		return u, nil
	}
	for _, f := range groups {
		// name:password:gid:members (group(5))
		if len(f) < 4 || login == "" || !slices.Contains(strings.Split(f[3], ","), login) {
			continue
		}
		if gid, err := parseID(f[2]); err == nil && !slices.Contains(u.AdditionalGids, gid) {
			u.AdditionalGids = append(u.AdditionalGids, gid)
		}
	}
	return u, nil
}

func resolveGroup(name string, groups [][]string) (uint32, error) {
	for _, f := range groups {
		if len(f) >= 3 && f[0] == name {
			return parseID(f[2])
		}
	}
	gid, err := parseID(name)
	if err != nil {
		return 0, fmt.Errorf("group %q is not in the image's /etc/group: want one that is, or a number", name)
	}
	return gid, nil
}

// parseID parses a user's or group's number. runc takes no more than MaxInt32.
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > math.MaxInt32 {
		return 0, fmt.Errorf("%q is no number from 0 to %d", s, math.MaxInt32)
	}
	return uint32(n), nil
}

// maxTable bounds what is read of an image's passwd or group file.
const maxTable = 1 << 20

// readTable reads a file of lines with colons from the top-most of the layers
// that has it. Nothing is mounted for it, and no link leads out of a layer.
func readTable(layers []string, name string) ([][]string, error) {
	for _, dir := range layers {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, err
		}
		info, err := root.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			root.Close()
			continue
		}
		if err != nil || !info.Mode().IsRegular() {
			root.Close()
			if err == nil && isWhiteout(info) {
				return nil, nil // deleted by this layer
			}
			return nil, fmt.Errorf("/%s of the image is not a file: %v", name, err)
		}
		f, err := root.Open(name)
		root.Close()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		var rows [][]string
		lines := bufio.NewScanner(io.LimitReader(f, maxTable))
		for lines.Scan() {
			if line := strings.TrimSpace(lines.Text()); line != "" && line[0] != '#' {
				rows = append(rows, strings.Split(line, ":"))
			}
		}
		return rows, lines.Err()
	}
	return nil, nil
}

// isWhiteout reports overlayfs's mark of a deleted file: a character device
// of number 0/0.
func isWhiteout(info fs.FileInfo) bool {
	st, ok := info.Sys().(*unix.Stat_t)
	if ok {
		return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
	}
	return info.Mode()&fs.ModeCharDevice != 0
}
