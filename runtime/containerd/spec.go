//go:build linux

package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/platforms"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// defaultPath is what a process finds programs by when neither the image nor
// the spec sets PATH.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ociSpec translates a validated spec for an image into what runc runs.
func (r *Runtime) ociSpec(ctx context.Context, spec runtime.Spec, b *bundle) (*specs.Spec, error) {
	permanent := func(format string, args ...any) error {
		err := fmt.Errorf(format, args...)
		return &runtime.StartError{ID: spec.ID, Reason: err.Error(), Permanent: true, Err: err}
	}
	s, err := oci.GenerateSpec(r.store.with(ctx), nil, &containers.Container{ID: spec.ID})
	if err != nil {
		return nil, err
	}
	p := s.Process
	entrypoint, args := b.config.Entrypoint, b.config.Cmd
	if spec.Entrypoint != nil {
		entrypoint, args = spec.Entrypoint, nil
	}
	if spec.Args != nil {
		args = spec.Args
	}
	if p.Args = slices.Concat(entrypoint, args); len(p.Args) == 0 {
		return nil, permanent("the image %s has no command and the spec has no Args", spec.Image)
	}
	p.Env = mergeEnv([]string{defaultPath}, b.config.Env, spec.Env)
	if spec.Terminal {
		p.Terminal = true
		p.Env = mergeEnv([]string{"TERM=xterm"}, p.Env)
	}
	if p.Cwd = firstOf(spec.Dir, b.config.WorkingDir, "/"); !path.IsAbs(p.Cwd) {
		p.Cwd = "/" + p.Cwd
	}
	user, err := b.user(firstOf(spec.User, b.config.User))
	if err != nil {
		return nil, permanent("%w", err)
	}
	p.User = user
	p.Rlimits = rlimits(spec.Ulimits)
	s.Hostname = spec.Hostname
	s.Root.Readonly = spec.Security.ReadOnlyRoot
	s.Linux.CgroupsPath = r.cgroups.of(spec.ID)
	s.Linux.Sysctl = maps.Clone(spec.Sysctls)
	if err := network(s, spec); err != nil {
		return nil, permanent("%w", err)
	}
	if err := r.cgroups.checkCPUs(spec.Resources.CPUSet); err != nil {
		return nil, permanent("%w", err)
	}
	resources(s.Linux.Resources, spec.Resources)
	if err := mounts(s, spec.Mounts); err != nil {
		return nil, permanent("%w", err)
	}
	if err := r.security(ctx, s, spec, b); err != nil {
		return nil, permanent("%w", err)
	}
	return s, nil
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// mergeEnv joins environments; the last value of a key wins and keeps the
// place of the first.
func mergeEnv(lists ...[]string) []string {
	var env []string
	at := map[string]int{}
	for _, list := range lists {
		for _, e := range list {
			key, _, _ := strings.Cut(e, "=")
			if i, ok := at[key]; ok {
				env[i] = e
				continue
			}
			at[key] = len(env)
			env = append(env, e)
		}
	}
	return env
}

func rlimits(ulimits []runtime.Ulimit) []specs.POSIXRlimit {
	// A limit of 1024 descriptors is containerd's default and too small for
	// servers; the high hard limit lets a program ask for more (as systemd
	// does, see its "File Descriptor Limits"). Without CAP_SYS_RESOURCE it
	// cannot be above this process's own.
	hard := uint64(524288)
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err == nil {
		hard = min(hard, own.Max)
	}
	limits := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: min(1024, hard), Hard: hard}}
	for _, u := range ulimits {
		l := specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: u.Soft, Hard: u.Hard}
		if i := slices.IndexFunc(limits, func(o specs.POSIXRlimit) bool { return o.Type == l.Type }); i >= 0 {
			limits[i] = l
			continue
		}
		limits = append(limits, l)
	}
	return limits
}

func network(s *specs.Spec, spec runtime.Spec) error {
	ns := s.Linux.Namespaces
	i := slices.IndexFunc(ns, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
	switch {
	case spec.HostNetwork:
		s.Linux.Namespaces = slices.Delete(ns, i, i+1)
		name, err := os.Hostname()
		if err != nil {
			return err
		}
		s.Hostname = name
	case spec.NetNS != "":
		if _, err := os.Stat(spec.NetNS); err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		ns[i].Path = spec.NetNS
	}
	return nil
}

// cfsPeriod is the kernel's default period of CPU quotas, in microseconds.
const cfsPeriod = 100_000

func resources(res *specs.LinuxResources, want runtime.Resources) {
	if want.CPU > 0 || want.CPUShares > 0 || want.CPUSet != "" {
		cpu := &specs.LinuxCPU{Cpus: want.CPUSet}
		if want.CPU > 0 {
			period := uint64(cfsPeriod)
			// The kernel refuses quotas below a millisecond.
			quota := max(want.CPU*cfsPeriod/1000, 1000)
			cpu.Period, cpu.Quota = &period, &quota
		}
		if want.CPUShares > 0 {
			shares := uint64(max(want.CPUShares*1024/1000, 2))
			cpu.Shares = &shares
		}
		res.CPU = cpu
	}
	if want.Memory > 0 || want.MemoryRequest > 0 {
		m := &specs.LinuxMemory{}
		if want.Memory > 0 {
			// Without this the container may use as much swap again.
			m.Limit, m.Swap = &want.Memory, &want.Memory
		}
		if want.MemoryRequest > 0 {
			m.Reservation = &want.MemoryRequest
		}
		res.Memory = m
	}
	if want.Pids > 0 {
		res.Pids = &specs.LinuxPids{Limit: &want.Pids}
	}
}

func mounts(s *specs.Spec, want []runtime.Mount) error {
	for _, m := range want {
		target := path.Clean(m.Target)
		// What the caller mounts replaces a default mount, such as /dev/shm.
		s.Mounts = slices.DeleteFunc(s.Mounts, func(d specs.Mount) bool { return d.Destination == target })
		mount := specs.Mount{Destination: target, Options: slices.Clone(m.Options)}
		switch m.Type {
		case "tmpfs":
			mount.Type, mount.Source = "tmpfs", "tmpfs"
			mount.Options = append([]string{"nosuid", "nodev"}, mount.Options...)
			mode := m.Mode
			if mode == 0 {
				mode = 0o1777
			}
			mount.Options = append(mount.Options, fmt.Sprintf("mode=%o", mode))
			if m.Size > 0 {
				mount.Options = append(mount.Options, "size="+strconv.FormatInt(m.Size, 10))
			}
		default:
			if _, err := os.Stat(m.Source); err != nil {
				return fmt.Errorf("mount at %s: %w", m.Target, err)
			}
			mount.Type, mount.Source = "bind", m.Source
			if !slices.ContainsFunc(m.Options, func(o string) bool { return o == "bind" || o == "rbind" }) {
				mount.Options = append(mount.Options, "rbind")
			}
			if !slices.ContainsFunc(m.Options, isPropagation) {
				mount.Options = append(mount.Options, "rprivate")
			}
		}
		if m.ReadOnly {
			mount.Options = append(mount.Options, "ro")
		}
		s.Mounts = append(s.Mounts, mount)
	}
	// A mount of a folder must come before those below it.
	slices.SortStableFunc(s.Mounts, func(a, b specs.Mount) int {
		return strings.Count(path.Clean(a.Destination), "/") - strings.Count(path.Clean(b.Destination), "/")
	})
	return nil
}

func isPropagation(option string) bool {
	switch strings.TrimPrefix(option, "r") {
	case "shared", "slave", "private", "unbindable":
		return true
	}
	return false
}

func (r *Runtime) security(ctx context.Context, s *specs.Spec, spec runtime.Spec, b *bundle) error {
	want := spec.Security
	apply := func(opts ...oci.SpecOpts) error {
		return oci.ApplyOpts(r.store.with(ctx), nil, &containers.Container{ID: spec.ID}, s, opts...)
	}
	// /dev/null and its like.
	if err := apply(oci.WithDefaultUnixDevices); err != nil {
		return err
	}
	if want.Privileged {
		if err := apply(oci.WithPrivileged, oci.WithAllDevicesAllowed, oci.WithNewPrivileges); err != nil {
			return err
		}
		return devices(s, spec.Devices)
	}
	s.Process.NoNewPrivileges = !want.AllowNewPrivileges
	all, err := cap.Current()
	if err != nil {
		return err
	}
	setCapabilities(s.Process.Capabilities, all, want.CapAdd, want.CapDrop)
	if want.UnmaskPaths {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	}
	switch want.Seccomp {
	case "unconfined":
	case "":
		// It depends on the capabilities, which are set by now.
		s.Linux.Seccomp = defaultSeccomp(s, b)
	default:
		var profile specs.LinuxSeccomp
		if err := json.Unmarshal([]byte(want.Seccomp), &profile); err != nil {
			return fmt.Errorf("seccomp profile: %w", err)
		}
		s.Linux.Seccomp = &profile
	}
	return devices(s, spec.Devices)
}

// defaultSeccomp is containerd's default profile. Of the architectures that
// this machine can run besides its own, such as x86 and x32 on amd64, it
// allows none when the image is for the machine's own: a program of another
// is killed at its first system call. That is stricter than containerd, and
// it is most of what the filter costs at each start: 18 ms of 45 for runc run,
// against 2 ms.
func defaultSeccomp(s *specs.Spec, b *bundle) *specs.LinuxSeccomp {
	profile := seccomp.DefaultProfile(s)
	native, ok := map[string]specs.Arch{
		"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64, "riscv64": specs.ArchRISCV64,
		"s390x": specs.ArchS390X, "loong64": specs.ArchLOONGARCH64,
	}[goruntime.GOARCH]
	if p, err := platforms.Parse(b.image.Platform); ok && err == nil && p.Architecture == goruntime.GOARCH {
		profile.Architectures = []specs.Arch{native}
	}
	return profile
}

// setCapabilities changes the default set; all is what ALL means, for no more
// than this process has can be given.
func setCapabilities(c *specs.LinuxCapabilities, all, add, drop []string) {
	set := c.Bounding
	for _, name := range drop {
		full, err := runtime.Capability(name)
		switch {
		case err != nil:
		case full == "ALL":
			set = nil
		default:
			set = slices.DeleteFunc(slices.Clone(set), func(s string) bool { return s == full })
		}
	}
	for _, name := range add {
		full, err := runtime.Capability(name)
		switch {
		case err != nil:
		case full == "ALL":
			set = all
		case !slices.Contains(set, full):
			set = append(slices.Clone(set), full)
		}
	}
	// No inheritable or ambient ones: CVE-2022-24769.
	c.Bounding, c.Permitted, c.Effective = set, set, set
	c.Inheritable, c.Ambient = nil, nil
}

func devices(s *specs.Spec, want []runtime.Device) error {
	for _, d := range want {
		dev, err := oci.DeviceFromPath(d.Source)
		if err != nil {
			return fmt.Errorf("device %s: %w", d.Source, err)
		}
		dev.Path = firstOf(d.Target, d.Source)
		s.Linux.Devices = append(s.Linux.Devices, *dev)
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: dev.Type, Major: &dev.Major, Minor: &dev.Minor,
			Access: firstOf(d.Permissions, "rwm"),
		})
	}
	return nil
}
