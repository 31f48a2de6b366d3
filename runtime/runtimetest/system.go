package runtimetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// systemCases are about what a process sees of the kernel.
func systemCases() []testCase {
	list := []testCase{
		{"out of memory", func(e *env) error {
			spec := e.spec("a", "eat=200")
			spec.Resources.Memory = 32 << 20
			if err := e.startSpec(spec); err != nil {
				return err
			}
			exit, err := e.rt.Wait(e.ctx, "a")
			if err != nil {
				return err
			}
			if !exit.OOMKilled || exit.Code != 137 {
				e.errorf("got %v, want code 137 and out of memory", exit)
			}
			return nil
		}},
		{"a program that is not there", func(e *env) error {
			spec := e.spec("a")
			spec.Entrypoint = []string{"/no/such/program"}
			var start *runtime.StartError
			if err := e.rt.Start(e.ctx, spec); !errors.As(err, &start) || !start.Permanent || start.ID != "a" {
				e.errorf("got %v (%T), want a permanent *StartError", err, err)
			}
			e.gone("a", "its start failed")
			spec = e.spec("a")
			spec.Mounts = []runtime.Mount{{Target: "/m", Source: "/no/such/folder"}}
			if err := e.rt.Start(e.ctx, spec); !errors.As(err, &start) || !start.Permanent {
				e.errorf("with a mount that is not there: got %v, want a permanent *StartError", err)
			}
			spec = e.spec("a")
			spec.User = "nosuchuser"
			if err := e.rt.Start(e.ctx, spec); !errors.As(err, &start) || !start.Permanent {
				e.errorf("with an unknown user: got %v, want a permanent *StartError", err)
			}
			e.gone("a", "its start failed")
			return nil
		}},
		{"secure by default", func(e *env) error {
			return e.prints(e.spec("a", "status=NoNewPrivs", "status=Seccomp", "status=CapBnd", "status=CapEff", "status=CapAmb",
				"read=/proc/timer_list", "write=/proc/sys/kernel/hostname", "stat=/dev/kmsg", "write=/root-is-writable"),
				// The default 14 capabilities, capabilities(7) by number; a
				// seccomp filter is mode 2.
				"1", "2", "00000000a80425fb", "00000000a80425fb", "0000000000000000",
				"", "open /proc/sys/kernel/hostname: read-only file system", "stat /dev/kmsg: no such file or directory", "written")
		}},
		{"security as asked for", func(e *env) error {
			spec := e.spec("drop", "status=CapEff", "write=/x")
			spec.Security = runtime.Security{CapDrop: []string{"ALL"}, CapAdd: []string{"net_admin"}, ReadOnlyRoot: true}
			if err := e.prints(spec, "0000000000001000", "open /x: read-only file system"); err != nil {
				return err
			}
			spec = e.spec("open", "status=NoNewPrivs", "status=Seccomp", "write=/proc/sys/kernel/domainname")
			spec.Security = runtime.Security{AllowNewPrivileges: true, Seccomp: "unconfined", UnmaskPaths: true}
			if err := e.prints(spec, "0", "0", "written"); err != nil {
				return err
			}
			spec = e.spec("profile", "status=Seccomp", "write=/x")
			spec.Security.Seccomp = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`
			return e.prints(spec, "2", "written")
		}},
		{"user, folder and hostname", func(e *env) error {
			spec := e.spec("a", "id", "pwd", "hostname")
			spec.User, spec.Dir, spec.Hostname = "nobody", "/tmp", "box"
			if err := e.prints(spec, "65534 65534", "/tmp", "box"); err != nil {
				return err
			}
			spec = e.spec("b", "id")
			spec.User = "1234:5678"
			return e.prints(spec, "1234 5678")
		}},
		{"mounts", func(e *env) error {
			dir, err := os.MkdirTemp("", "runtimetest-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from the host"), 0o644); err != nil {
				return err
			}
			spec := e.spec("a", "read=/rw/file", "write=/rw/new", "read=/ro/file", "write=/ro/new", "write=/mem/x", "read=/etc/hosts")
			spec.Mounts = []runtime.Mount{
				{Target: "/rw", Source: dir},
				{Target: "/ro", Source: dir, ReadOnly: true},
				{Target: "/mem", Type: "tmpfs", Size: 1 << 20},
				{Target: "/etc/hosts", Source: filepath.Join(dir, "file"), ReadOnly: true},
			}
			if err := e.prints(spec, "from the host", "written", "from the host",
				"open /ro/new: read-only file system", "written", "from the host"); err != nil {
				return err
			}
			if _, err := os.Stat(filepath.Join(dir, "new")); err != nil {
				e.errorf("what the container wrote to a mount is not on the host: %w", err)
			}
			return nil
		}},
		{"a CPU set that the machine does not have", func(e *env) error {
			spec := e.spec("a", "ignore")
			spec.Resources.CPUSet = "0,8191"
			var start *runtime.StartError
			if err := e.rt.Start(e.ctx, spec); !errors.As(err, &start) || !start.Permanent {
				e.errorf("got %v, want a permanent *StartError: it is no use to try again", err)
			}
			if _, there, err := e.get("a"); there || err != nil {
				e.errorf("the container that was refused is there (%v)", err)
			}
			spec.Resources.CPUSet = "0"
			return e.startSpec(spec)
		}},
		{"limits", func(e *env) error {
			spec := e.spec("a", "read=/proc/sys/net/ipv4/ip_unprivileged_port_start", "read=/proc/self/limits")
			spec.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80"}
			spec.Ulimits = []runtime.Ulimit{{Name: "sigpending", Soft: 777, Hard: 888}}
			spec.Resources = runtime.Resources{CPU: 500, CPUShares: 100, Memory: 64 << 20, MemoryRequest: 32 << 20, Pids: 50}
			if err := e.startSpec(spec); err != nil {
				return err
			}
			got, err := e.output("a")
			if err != nil {
				return err
			}
			if len(got) == 0 || got[0] != "80" {
				e.errorf("the sysctl reads %q, want 80", got)
			}
			found := false
			for _, line := range got {
				f := strings.Fields(line)
				found = found || len(f) > 4 && f[1] == "pending" && f[3] == "777" && f[4] == "888"
			}
			if !found {
				e.errorf("/proc/self/limits has no pending signals 777 888:\n%s", strings.Join(got, "\n"))
			}
			return nil
		}},
		{"devices", func(e *env) error {
			spec := e.spec("a", "write=/dev/other", "stat=/dev/null")
			spec.Devices = []runtime.Device{{Source: "/dev/null", Target: "/dev/other"}}
			if err := e.prints(spec, "written", "exists"); err != nil {
				return err
			}
			spec = e.spec("p", "status=Seccomp", "status=NoNewPrivs")
			spec.Security.Privileged = true
			return e.prints(spec, "0", "0")
		}},
		{"network namespace", func(e *env) error {
			own, err := os.Readlink("/proc/self/ns/net")
			if err != nil {
				return err
			}
			spec := e.spec("host", "ignore")
			spec.HostNetwork = true
			if err := errors.Join(e.startSpec(spec), e.start("own", "ignore")); err != nil {
				return err
			}
			namespace := func(id string) (string, error) {
				c, _, err := e.get(id)
				if err != nil {
					return "", err
				}
				return os.Readlink(fmt.Sprintf("/proc/%d/ns/net", c.PID))
			}
			if got, err := namespace("host"); err != nil || got != own {
				e.errorf("with HostNetwork it has %s, %v; want the host's, %s", got, err, own)
			}
			first, err := namespace("own")
			if err != nil || first == own {
				e.errorf("by default it has %s, %v; want one of its own", first, err)
			}
			c, _, err := e.get("own")
			if err != nil {
				return err
			}
			spec = e.spec("joined", "ignore")
			spec.NetNS = fmt.Sprintf("/proc/%d/ns/net", c.PID)
			if err := e.startSpec(spec); err != nil {
				return err
			}
			if got, err := namespace("joined"); err != nil || got != first {
				e.errorf("with NetNS it has %s, %v; want %s", got, err, first)
			}
			return nil
		}},
		{"terminal", func(e *env) error {
			spec := e.spec("a", "print=seen", "error=both")
			spec.Terminal = true
			if err := e.startSpec(spec); err != nil {
				return err
			}
			got, err := e.output("a")
			if err != nil {
				return err
			}
			// A terminal ends lines with a carriage return as well.
			if text := strings.Join(got, ""); text != "seen\rboth\r" {
				e.errorf("got %q: want both lines, on stdout", got)
			}
			return nil
		}},
		{"a group", func(e *env) error {
			for _, id := range []string{"a", "b"} {
				spec := e.spec(id, "ignore")
				spec.Group = "g"
				if err := e.startSpec(spec); err != nil {
					return err
				}
			}
			if err := e.rt.Remove(e.ctx, "a"); err != nil {
				return err
			}
			if c, _, _ := e.get("b"); c.State != runtime.Running {
				e.errorf("when one of a group was removed the other became %v", c.State)
			}
			return nil
		}},
	}
	for i, c := range list {
		list[i].run = func(e *env) error {
			if !e.h.System {
				return errSkip
			}
			return c.run(e)
		}
	}
	return list
}
