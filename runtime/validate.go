package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Validate reports everything that no runtime could run, as *[SpecError]
// values joined by [errors.Join], or nil. Drivers call it first, so that a
// bad spec is refused whole.
func (s Spec) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &SpecError{Field: field, Reason: fmt.Sprintf(format, args...)})
	}
	if !ValidID(s.ID) {
		bad("ID", "%q: want 1 to 76 characters of [A-Za-z0-9] and, not at the ends, [._-]", s.ID)
	}
	if s.Image == "" {
		bad("Image", "is empty: want a reference such as docker.io/library/alpine:3")
	}
	if s.Entrypoint != nil && len(s.Entrypoint) == 0 && len(s.Args) == 0 {
		bad("Entrypoint", "is cleared and Args is empty: nothing would run")
	}
	for i, a := range s.Entrypoint {
		if strings.ContainsRune(a, 0) {
			bad(fmt.Sprintf("Entrypoint[%d]", i), "contains a zero byte")
		}
	}
	for i, a := range s.Args {
		if strings.ContainsRune(a, 0) {
			bad(fmt.Sprintf("Args[%d]", i), "contains a zero byte")
		}
	}
	for i, e := range s.Env {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" || strings.ContainsRune(e, 0) {
			bad(fmt.Sprintf("Env[%d]", i), "%q: want KEY=VALUE without zero bytes", e)
		}
	}
	if s.Dir != "" && !path.IsAbs(s.Dir) {
		bad("Dir", "%q: want an absolute path", s.Dir)
	}
	if strings.ContainsAny(s.User, " \t\n\x00") || strings.Count(s.User, ":") > 1 {
		bad("User", "%q: want user[:group]", s.User)
	}
	if len(s.Hostname) > 64 || strings.ContainsAny(s.Hostname, " /\t\n\x00") {
		bad("Hostname", "%q: want at most 64 characters without spaces or slashes", s.Hostname)
	}
	if s.Hostname != "" && s.HostNetwork {
		// runc would set it, but a program that looks its own name up in
		// the host's resolver would not find it.
		bad("Hostname", "cannot be set with HostNetwork")
	}
	if s.HostNetwork && s.NetNS != "" {
		bad("NetNS", "is set together with HostNetwork: want one of them")
	}
	if s.NetNS != "" && !path.IsAbs(s.NetNS) {
		bad("NetNS", "%q: want an absolute path", s.NetNS)
	}
	if s.Group != "" && !ValidID(s.Group) {
		bad("Group", "%q: want the form of an ID", s.Group)
	}
	if s.Logs.MaxBytes < 0 || s.Logs.MaxFiles < 0 {
		bad("Logs", "bounds are negative")
	}
	s.validateMounts(bad)
	s.validateLimits(bad)
	s.validateSecurity(bad)
	return errors.Join(errs...)
}

// ValidID reports whether id has the form that [Spec.ID] asks for.
func ValidID(id string) bool {
	if len(id) == 0 || len(id) > 76 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case (c == '.' || c == '_' || c == '-') && i > 0 && i < len(id)-1:
		default:
			return false
		}
	}
	return true
}

func (s Spec) validateMounts(bad func(field, format string, args ...any)) {
	seen := map[string]bool{}
	for i, m := range s.Mounts {
		field := fmt.Sprintf("Mounts[%d]", i)
		target := path.Clean(m.Target)
		switch {
		case !path.IsAbs(m.Target) || strings.ContainsRune(m.Target, 0):
			bad(field+".Target", "%q: want an absolute path", m.Target)
		case slices.Contains(strings.Split(m.Target, "/"), ".."):
			bad(field+".Target", "%q: contains \"..\"", m.Target)
		case target == "/":
			bad(field+".Target", "is the root of the container: want a path below it")
		case target == "/proc" || strings.HasPrefix(target, "/proc/"):
			// runc refuses it too: a writable file over /proc defeats the
			// confinement (CVE-2019-16884).
			bad(field+".Target", "%q: /proc belongs to the runtime", m.Target)
		case seen[target]:
			bad(field+".Target", "%q: mounted twice", m.Target)
		}
		seen[target] = true
		switch m.Type {
		case "", "bind":
			if !path.IsAbs(m.Source) || strings.ContainsRune(m.Source, 0) {
				bad(field+".Source", "%q: want an absolute path on the host", m.Source)
			}
			if m.Size != 0 {
				bad(field+".Size", "applies to tmpfs alone")
			}
		case "tmpfs":
			if m.Source != "" {
				bad(field+".Source", "%q: a tmpfs has none", m.Source)
			}
			if m.Size < 0 {
				bad(field+".Size", "%d: want 0 or more bytes", m.Size)
			}
		default:
			bad(field+".Type", "%q: want bind or tmpfs", m.Type)
		}
		if m.Mode > 0o7777 {
			bad(field+".Mode", "%#o: want permission bits", m.Mode)
		}
		for j, o := range m.Options {
			if o == "" || strings.ContainsAny(o, ",\x00") {
				bad(fmt.Sprintf("%s.Options[%d]", field, j), "%q: want one mount option", o)
			}
		}
	}
}

// Validate reports the bounds that no runtime could set, as *[SpecError]
// values joined by [errors.Join], or nil.
func (r Resources) Validate() error {
	var errs []error
	r.validate(func(field, format string, args ...any) {
		errs = append(errs, &SpecError{Field: field, Reason: fmt.Sprintf(format, args...)})
	})
	return errors.Join(errs...)
}

func (r Resources) validate(bad func(field, format string, args ...any)) {
	for _, v := range []struct {
		name  string
		value int64
	}{
		{"CPU", r.CPU}, {"CPUShares", r.CPUShares}, {"Memory", r.Memory},
		{"MemoryRequest", r.MemoryRequest}, {"Pids", r.Pids},
	} {
		if v.value < 0 {
			bad("Resources."+v.name, "%d: want 0, for no bound, or more", v.value)
		}
	}
	if r.CPU > math.MaxInt64/100 {
		bad("Resources.CPU", "%d: more than any machine has", r.CPU)
	}
	// Below this no process starts: the kernel charges the runtime's own
	// copy of itself to the container.
	if r.Memory > 0 && r.Memory < 6<<20 {
		bad("Resources.Memory", "%d: want at least 6 MiB, which a process needs to start", r.Memory)
	}
	if r.Memory > 0 && r.MemoryRequest > r.Memory {
		bad("Resources.MemoryRequest", "%d: is above Memory, %d", r.MemoryRequest, r.Memory)
	}
	if r.CPUSet != "" && !validCPUSet(r.CPUSet) {
		bad("Resources.CPUSet", "%q: want a list such as 0-3,6", r.CPUSet)
	}
}

func (s Spec) validateLimits(bad func(field, format string, args ...any)) {
	s.Resources.validate(bad)
	seen := map[string]bool{}
	for i, u := range s.Ulimits {
		field := fmt.Sprintf("Ulimits[%d]", i)
		if !slices.Contains(ulimits, u.Name) {
			bad(field+".Name", "%q: want one of %s", u.Name, strings.Join(ulimits, ", "))
		}
		if seen[u.Name] {
			bad(field+".Name", "%q: set twice", u.Name)
		}
		seen[u.Name] = true
		if u.Soft > u.Hard {
			bad(field+".Soft", "%d: is above Hard, %d", u.Soft, u.Hard)
		}
	}
	for _, name := range sortedKeys(s.Sysctls) {
		field := fmt.Sprintf("Sysctls[%s]", name)
		switch {
		case !namespacedSysctl(name):
			bad(field, "is not namespaced, it would change the host: want net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*")
		case strings.HasPrefix(name, "net.") && s.HostNetwork:
			bad(field, "would change the host: HostNetwork is set")
		}
	}
}

// The resource names of setrlimit(2).
var ulimits = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice",
	"nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
}

// namespacedSysctl reports whether a sysctl belongs to a namespace that each
// container has of its own: network and IPC (namespaces(7)).
func namespacedSysctl(name string) bool {
	if strings.ContainsAny(name, "/\x00") || strings.Contains(name, "..") {
		return false
	}
	switch name {
	case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
		"kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced":
		return true
	}
	return strings.HasPrefix(name, "net.") && len(name) > len("net.") ||
		strings.HasPrefix(name, "fs.mqueue.") && len(name) > len("fs.mqueue.")
}

func validCPUSet(set string) bool {
	for part := range strings.SplitSeq(set, ",") {
		from, to, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(from, 10, 16)
		if err != nil {
			return false
		}
		if isRange {
			b, err := strconv.ParseUint(to, 10, 16)
			if err != nil || b < a {
				return false
			}
		}
	}
	return true
}

func (s Spec) validateSecurity(bad func(field, format string, args ...any)) {
	for i, c := range s.Security.CapAdd {
		if _, err := Capability(c); err != nil {
			bad(fmt.Sprintf("Security.CapAdd[%d]", i), "%v", err)
		}
	}
	for i, c := range s.Security.CapDrop {
		if _, err := Capability(c); err != nil {
			bad(fmt.Sprintf("Security.CapDrop[%d]", i), "%v", err)
		}
	}
	switch p := s.Security.Seccomp; p {
	case "", "unconfined":
	default:
		var v struct {
			DefaultAction string `json:"defaultAction"`
		}
		if err := json.Unmarshal([]byte(p), &v); err != nil {
			bad("Security.Seccomp", "want \"\", unconfined, or a profile in JSON: %v", err)
		} else if !strings.HasPrefix(v.DefaultAction, "SCMP_ACT_") {
			bad("Security.Seccomp", "the profile's defaultAction is %q: want SCMP_ACT_…", v.DefaultAction)
		}
	}
	for i, d := range s.Devices {
		field := fmt.Sprintf("Devices[%d]", i)
		if !path.IsAbs(d.Source) {
			bad(field+".Source", "%q: want an absolute path on the host", d.Source)
		}
		if d.Target != "" && !path.IsAbs(d.Target) {
			bad(field+".Target", "%q: want an absolute path", d.Target)
		}
		if strings.Trim(d.Permissions, "rwm") != "" {
			bad(field+".Permissions", "%q: want letters of rwm", d.Permissions)
		}
	}
}

// capabilities(7), without the CAP_ that they share.
var capabilities = []string{
	"AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE",
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER",
	"KILL", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP", "SETGID", "SETPCAP",
	"SETUID", "SYSLOG", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE",
	"SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG",
	"WAKE_ALARM",
}

// Capability returns the full upper-case name of a capability that is named
// with or without CAP_, in any case; ALL stays ALL.
func Capability(name string) (string, error) {
	short := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	if short == "ALL" {
		return short, nil
	}
	if !slices.Contains(capabilities, short) {
		return "", fmt.Errorf("%q is no capability: want a name of capabilities(7), such as NET_ADMIN, or ALL", name)
	}
	return "CAP_" + short, nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
