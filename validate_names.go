package orchestrate

import (
	"net/netip"
	"path"
	"strconv"
	"strings"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// label checks a DNS label (RFC 1123 section 2.1, in lower case).
func (c *checks) label(path, s string, most int) {
	switch {
	case s == "":
		c.add(path, nil, "is missing; give a DNS label such as \"web\"")
	case !isLabel(s, most):
		c.add(path, s, "is not a DNS label; use 1 to %d lower-case letters, digits and hyphens, with no hyphen at the ends", most)
	}
}

func isLabel(s string, most int) bool {
	return len(s) > 0 && len(s) <= most && s[0] != '-' && s[len(s)-1] != '-' &&
		only(s, func(b byte) bool { return isLower(b) || isDigit(b) || b == '-' })
}

// hostname checks a DNS name of labels in letters of either case.
func (c *checks) hostname(path, s string, most int) {
	ok := s != "" && len(s) <= most
	for part := range strings.SplitSeq(s, ".") {
		ok = ok && isLabel(strings.ToLower(part), 63)
	}
	if !ok {
		c.add(path, s, "is not a host name; use labels of letters, digits and inner hyphens, joined by dots, at most %d characters", most)
	}
}

// labels checks an object's labels. Those of containers share their keys with
// the agent, which has a prefix of its own.
func (c *checks) labels(path string, labels map[string]string, container bool) {
	for _, key := range keysOf(labels) {
		at := atKey(path, key)
		switch {
		case key == "" || len(key) > 253 || !only(key, func(b byte) bool { return isAlnum(b) || strings.IndexByte("./_-", b) >= 0 }):
			c.add(at, nil, "is not a label key; use 1 to 253 of the characters A-Z a-z 0-9 . / _ -")
		case container && strings.HasPrefix(key, labelPrefix):
			c.add(at, nil, "is a reserved label; the agent sets those that begin with %q", labelPrefix)
		}
		// containerd bounds a label's key and value together.
		if size := len(key) + len(labels[key]); container && size > 4096 {
			c.add(at, nil, "is %d bytes with its key; at most 4096", size)
		} else if !container && len(labels[key]) > 4096 {
			c.add(at, nil, "is %d bytes; at most 4096", len(labels[key]))
		}
	}
}

// labelPrefix is what the labels of package runtime have in common.
var labelPrefix, _, _ = strings.Cut(runtime.LabelTask, "task")

// absolute checks a path that must be absolute and clean, so that two
// spellings of one path are never two paths.
func (c *checks) absolute(at, p, what string) bool {
	const most = 4095 // PATH_MAX of the Linux kernel, without the NUL
	switch clean := path.Clean("/" + p); {
	case p == "":
		c.add(at, nil, "is missing; give an absolute path %s", what)
	case len(p) > most:
		c.add(at, p, "is longer than %d bytes", most)
	case p[0] != '/':
		c.add(at, p, "is not absolute; give a path %s that begins with /", what)
	case clean != p:
		c.add(at, p, "is not a clean path; write %q", clean)
	default:
		return true
	}
	return false
}

// user checks user[:group].
func (c *checks) user(at, s string) {
	user, group, hasGroup := strings.Cut(s, ":")
	if !isAccount(user) || hasGroup && !isAccount(group) {
		c.add(at, s, "is not a user; write user or user:group, each a number from 0 to 4294967294 or a name of at most 32 letters, digits and . _ -")
	}
}

func isAccount(s string) bool {
	if s != "" && only(s, isDigit) {
		id, err := strconv.ParseUint(s, 10, 32)
		return err == nil && id < 1<<32-1 // the last one means "no change" to chown(2)
	}
	s = strings.TrimSuffix(s, "$") // of machine accounts, useradd(8)
	return s != "" && len(s) <= 32 && s[0] != '-' && s[0] != '.' &&
		only(s, func(b byte) bool { return isAlnum(b) || strings.IndexByte("._-", b) >= 0 })
}

// env checks the names of environment variables; values may be any text.
func (c *checks) env(path string, env map[string]string) {
	for _, key := range keysOf(env) {
		switch {
		case key == "":
			c.add(atKey(path, key), nil, "has an empty name; name the variable")
		case strings.Contains(key, "="):
			c.add(atKey(path, key), nil, "has \"=\" in its name; what follows it belongs to the value")
		}
	}
}

// volumeName checks the name of a volume within its namespace: the rule of
// package volume, with room for the namespace before it.
func (c *checks) volumeName(at, s string) {
	const most = 64
	switch {
	case s == "":
		c.add(at, nil, "is missing; name the volume")
	case len(s) > most || !isAlnum(s[0]) || !only(s, func(b byte) bool { return isAlnum(b) || strings.IndexByte("_.-", b) >= 0 }):
		c.add(at, s, "is not the name of a volume; use at most %d of the characters A-Z a-z 0-9 _ . - with a letter or digit first", most)
	}
}

// address checks an IP address.
func (c *checks) address(at, s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		c.add(at, s, "is not an IP address; write such as \"192.0.2.1\" or \"2001:db8::1\"")
	case addr.Zone() != "":
		c.add(at, s, "has a zone, which means something on one machine alone; leave %%%s away", addr.Zone())
		return addr, false
	}
	return addr, err == nil
}

func only(s string, ok func(b byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return true
}

func isLower(b byte) bool { return 'a' <= b && b <= 'z' }
func isDigit(b byte) bool { return '0' <= b && b <= '9' }
func isAlnum(b byte) bool { return isLower(b|0x20) || isDigit(b) }
