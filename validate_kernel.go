package orchestrate

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// What the Linux kernel knows by name, and the checks of it.

// keysOf returns the keys of m in order.
func keysOf[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (c *checks) security(path string, s *runtime.Security) {
	seen := map[string]string{}
	for _, l := range []struct {
		path string
		list []string
	}{{path + ".capAdd", s.CapAdd}, {path + ".capDrop", s.CapDrop}} {
		for i, name := range l.list {
			bare, err := runtime.Capability(name)
			if err != nil {
				c.add(at(l.path, i), name, "is not a capability; see capabilities(7), such as \"NET_ADMIN\", or \"ALL\"")
				continue
			}
			if first, ok := seen[bare]; ok {
				c.add(at(l.path, i), name, "is named twice, first at %s; keep one", first)
				continue
			}
			seen[bare] = at(l.path, i)
		}
	}
	if s.Privileged && len(s.CapDrop) > 0 {
		c.add(path+".capDrop", nil, "contradicts privileged, which gives all capabilities; keep one of the two")
	}
	switch s.Seccomp {
	case "", "unconfined":
	default:
		if s.Privileged {
			c.add(path+".seccomp", nil, "contradicts privileged, which lifts seccomp; keep one of the two")
		}
		c.seccomp(path+".seccomp", s.Seccomp)
	}
}

func (c *checks) ulimits(path string, ulimits []runtime.Ulimit) {
	// The names of getrlimit(2).
	known := []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice",
		"nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}
	// The greatest fs.nr_open; above it setrlimit(2) is refused even to root.
	const mostFiles = 1<<31 - 64
	seen := map[string]string{}
	for i, u := range ulimits {
		at := at(path, i)
		if !slices.Contains(known, u.Name) {
			c.add(at+".name", u.Name, "is not a limit; use one of %s", strings.Join(known, ", "))
		}
		c.unique(seen, at+".name", u.Name)
		if u.Soft > u.Hard {
			c.add(at+".soft", u.Soft, "is above the hard limit of %d; lower it, or raise hard", u.Hard)
		}
		if u.Name == "nofile" && u.Hard > mostFiles {
			c.add(at+".hard", u.Hard, "is more open files than the kernel allows; at most %d", mostFiles)
		}
	}
}

// sysctlMistake refuses sysctls that belong to the node and not to a
// namespace of the container, as package runtime does; "" when there is no
// mistake.
func sysctlMistake(key string, hostNetwork bool) string {
	for part := range strings.SplitSeq(key, ".") {
		if part == "" || !only(part, func(b byte) bool { return isAlnum(b) || b == '_' || b == '-' }) {
			return "is not the name of a sysctl; write it with dots, such as \"net.core.somaxconn\""
		}
	}
	switch key {
	case "kernel.hostname":
		return "is set by hostname; use that"
	case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
		"kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced":
		return ""
	}
	switch {
	case strings.HasPrefix(key, "fs.mqueue."):
		return ""
	case strings.HasPrefix(key, "net."):
		if hostNetwork {
			return "would change the node's own network, which the task shares by hostNetwork; set it on the node"
		}
		return ""
	}
	return "belongs to the whole node; a container can have net.*, fs.mqueue.*, kernel.msg*, kernel.sem and kernel.shm* of its own"
}

// taskSysctls checks a container's sysctls. Those of the network are the whole
// task's, so its containers must agree on them.
func (c *checks) taskSysctls(path string, sysctls, task map[string]string, hostNetwork bool) {
	for _, key := range keysOf(sysctls) {
		at := atKey(path, key)
		if mistake := sysctlMistake(key, hostNetwork); mistake != "" {
			c.add(at, nil, "%s", mistake)
			continue
		}
		value := sysctls[key]
		if value == "" {
			c.add(at, nil, "has no value; give one")
		}
		if !strings.HasPrefix(key, "net.") {
			continue
		}
		if other, ok := task[key]; ok && other != value {
			c.add(at, value, "differs from %q in another container of the task; they share one network, so give one value", shorten(other))
		}
		task[key] = value
	}
}

func (c *checks) devices(path string, devices []runtime.Device) {
	seen := map[string]string{}
	for i, d := range devices {
		at := at(path, i)
		if !c.absolute(at+".source", d.Source, "of the device on the node") {
			continue
		}
		if c.absolute(at+".target", d.Target, "of the device in the container") {
			c.unique(seen, at+".target", d.Target)
		}
		p := d.Permissions
		if strings.Trim(p, "rwm") != "" || strings.Count(p, "r") > 1 || strings.Count(p, "w") > 1 || strings.Count(p, "m") > 1 {
			c.add(at+".permissions", p, "are no permissions; use letters of \"rwm\" for reading, writing and mknod, each once")
		}
	}
}

// cpuset checks a list of CPUs in the form of cpuset(7), List format.
func (c *checks) cpuset(at, s string) {
	const most = 8191 // CONFIG_NR_CPUS of the largest kernels is 8192
	for part := range strings.SplitSeq(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		a, errA := strconv.ParseUint(first, 10, 16)
		b, errB := strconv.ParseUint(last, 10, 16)
		switch {
		case errA != nil || errB != nil || !isDigit(first[0]) || !isDigit(last[0]) || b > most:
			c.add(at, s, "is not a set of CPUs; write numbers from 0 to %d and ranges, such as \"0-3,6\"", most)
			return
		case a > b:
			c.add(at, s, "has the range %s, which ends before it begins; write \"%d-%d\"", part, b, a)
			return
		}
	}
}

// ParseSignal returns the number of a signal of Linux: a name with or without
// SIG, in upper or lower case, a real-time signal such as "SIGRTMIN+3", or a
// number from 1 to 64.
func ParseSignal(s string) (runtime.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && only(s, isDigit) {
		if n < 1 || n > 64 {
			return 0, fmt.Errorf("signal %d is out of range; from 1 to 64", n)
		}
		return runtime.Signal(n), nil
	}
	// signal(7), numbering of x86 and ARM; in its order, from 1.
	names := strings.Fields(`HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT
		CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS`)
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if i := slices.Index(names, name); i >= 0 {
		return runtime.Signal(i + 1), nil
	}
	switch name {
	case "IOT":
		return 6, nil
	case "CLD":
		return 17, nil
	case "POLL":
		return 29, nil
	}
	const rtmin, rtmax = 34, 64 // as glibc and musl count; 32 and 33 are theirs
	if rest, ok := strings.CutPrefix(name, "RTMIN"); ok {
		if n, ok := offset(rest, '+', rtmax-rtmin); ok {
			return runtime.Signal(rtmin + n), nil
		}
	}
	if rest, ok := strings.CutPrefix(name, "RTMAX"); ok {
		if n, ok := offset(rest, '-', rtmax-rtmin); ok {
			return runtime.Signal(rtmax - n), nil
		}
	}
	return 0, fmt.Errorf("%q is not a signal; use a name such as \"SIGTERM\" or a number from 1 to 64", shorten(s))
}

// offset reads "" or a sign and a number up to most.
func offset(s string, sign byte, most int) (int, bool) {
	if s == "" {
		return 0, true
	}
	n, err := strconv.Atoi(s[1:])
	return n, s[0] == sign && err == nil && only(s[1:], isDigit) && n <= most
}

func (c *checks) signal(at, s string) {
	if s == "" {
		return // the image's
	}
	if _, err := ParseSignal(s); err != nil {
		c.add(at, s, "is not a signal; use a name such as \"SIGTERM\" or a number from 1 to 64")
	}
}
