package runtime_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate/runtime"
)

func TestExitString(t *testing.T) {
	for _, test := range []struct {
		exit runtime.Exit
		want string
	}{
		{runtime.Exit{}, "exit code 0"},
		{runtime.Exit{Code: 3}, "exit code 3"},
		{runtime.Exit{Code: 128}, "exit code 128"},
		{runtime.Exit{Code: 143}, "exit code 143 (SIGTERM)"},
		{runtime.Exit{Code: 139}, "exit code 139 (signal 11)"},
		{runtime.Exit{Code: 137, OOMKilled: true}, "exit code 137 (SIGKILL), out of memory"},
	} {
		if got := test.exit.String(); got != test.want {
			t.Errorf("%+v: got %q, want %q", test.exit, got, test.want)
		}
	}
}

// Each of these is refused with the field that is wrong.
func TestValidateRefuses(t *testing.T) {
	for _, test := range []struct {
		field  string
		change func(*runtime.Spec)
	}{
		{"ID", func(s *runtime.Spec) { s.ID = "" }},
		{"ID", func(s *runtime.Spec) { s.ID = strings.Repeat("a", 77) }},
		{"ID", func(s *runtime.Spec) { s.ID = "../up" }},
		{"ID", func(s *runtime.Spec) { s.ID = ".hidden" }},
		{"ID", func(s *runtime.Spec) { s.ID = "end-" }},
		{"ID", func(s *runtime.Spec) { s.ID = "sp ace" }},
		{"Image", func(s *runtime.Spec) { s.Image = "" }},
		{"Entrypoint", func(s *runtime.Spec) { s.Entrypoint, s.Args = []string{}, nil }},
		{"Entrypoint[0]", func(s *runtime.Spec) { s.Entrypoint = []string{"a\x00b"} }},
		{"Args[1]", func(s *runtime.Spec) { s.Args = []string{"a", "\x00"} }},
		{"Env[0]", func(s *runtime.Spec) { s.Env = []string{"A"} }},
		{"Env[0]", func(s *runtime.Spec) { s.Env = []string{"=b"} }},
		{"Env[1]", func(s *runtime.Spec) { s.Env = []string{"A=", "B=\x00"} }},
		{"Dir", func(s *runtime.Spec) { s.Dir = "here" }},
		{"User", func(s *runtime.Spec) { s.User = "a:b:c" }},
		{"User", func(s *runtime.Spec) { s.User = "a b" }},
		{"Hostname", func(s *runtime.Spec) { s.Hostname = strings.Repeat("h", 65) }},
		{"Hostname", func(s *runtime.Spec) { s.Hostname, s.HostNetwork = "h", true }},
		{"NetNS", func(s *runtime.Spec) { s.NetNS, s.HostNetwork = "/run/ns", true }},
		{"NetNS", func(s *runtime.Spec) { s.NetNS = "ns" }},
		{"Group", func(s *runtime.Spec) { s.Group = "/" }},
		{"Logs", func(s *runtime.Spec) { s.Logs.MaxBytes = -1 }},
		{"Mounts[0].Target", func(s *runtime.Spec) { s.Mounts = []runtime.Mount{{Target: "x", Source: "/x"}} }},
		{"Mounts[0].Target", func(s *runtime.Spec) { s.Mounts = []runtime.Mount{{Target: "/a/../../x", Source: "/x"}} }},
		{"Mounts[0].Target", func(s *runtime.Spec) { s.Mounts = []runtime.Mount{{Target: "/", Source: "/x"}} }},
		{"Mounts[0].Target", func(s *runtime.Spec) { s.Mounts = []runtime.Mount{{Target: "/proc/sys", Source: "/x"}} }},
		{"Mounts[1].Target", func(s *runtime.Spec) {
			s.Mounts = []runtime.Mount{{Target: "/a", Source: "/x"}, {Target: "/a/", Source: "/y"}}
		}},
		{"Mounts[0].Source", func(s *runtime.Spec) { s.Mounts = []runtime.Mount{{Target: "/a", Source: "x"}} }},
		{"Mounts[0].Source", func(s *runtime.Spec) { s.Mounts = []runtime.Mount{{Target: "/a", Source: "/x", Type: "tmpfs"}} }},
		{"Mounts[0].Size", func(s *runtime.Spec) { s.Mounts = []runtime.Mount{{Target: "/a", Source: "/x", Size: 1}} }},
		{"Mounts[0].Size", func(s *runtime.Spec) { s.Mounts = []runtime.Mount{{Target: "/a", Type: "tmpfs", Size: -1}} }},
		{"Mounts[0].Type", func(s *runtime.Spec) { s.Mounts = []runtime.Mount{{Target: "/a", Type: "nfs"}} }},
		{"Mounts[0].Mode", func(s *runtime.Spec) { s.Mounts = []runtime.Mount{{Target: "/a", Type: "tmpfs", Mode: 0o10000}} }},
		{"Mounts[0].Options[0]", func(s *runtime.Spec) {
			s.Mounts = []runtime.Mount{{Target: "/a", Source: "/x", Options: []string{"ro,exec"}}}
		}},
		{"Resources.CPU", func(s *runtime.Spec) { s.Resources.CPU = -1 }},
		{"Resources.CPUShares", func(s *runtime.Spec) { s.Resources.CPUShares = -1 }},
		{"Resources.CPUSet", func(s *runtime.Spec) { s.Resources.CPUSet = "3-1" }},
		{"Resources.Memory", func(s *runtime.Spec) { s.Resources.Memory = 1 << 20 }},
		{"Resources.MemoryRequest", func(s *runtime.Spec) { s.Resources.Memory, s.Resources.MemoryRequest = 8<<20, 9<<20 }},
		{"Resources.Pids", func(s *runtime.Spec) { s.Resources.Pids = -1 }},
		{"Ulimits[0].Name", func(s *runtime.Spec) { s.Ulimits = []runtime.Ulimit{{Name: "files"}} }},
		{"Ulimits[0].Soft", func(s *runtime.Spec) { s.Ulimits = []runtime.Ulimit{{Name: "nofile", Soft: 2, Hard: 1}} }},
		{"Ulimits[1].Name", func(s *runtime.Spec) { s.Ulimits = []runtime.Ulimit{{Name: "core"}, {Name: "core"}} }},
		{"Sysctls[vm.overcommit_memory]", func(s *runtime.Spec) { s.Sysctls = map[string]string{"vm.overcommit_memory": "1"} }},
		{"Sysctls[net/../kernel/panic]", func(s *runtime.Spec) { s.Sysctls = map[string]string{"net/../kernel/panic": "1"} }},
		{"Sysctls[net.x]", func(s *runtime.Spec) { s.Sysctls, s.HostNetwork = map[string]string{"net.x": "1"}, true }},
		{"Security.CapAdd[0]", func(s *runtime.Spec) { s.Security.CapAdd = []string{"FLY"} }},
		{"Security.CapDrop[0]", func(s *runtime.Spec) { s.Security.CapDrop = []string{""} }},
		{"Security.Seccomp", func(s *runtime.Spec) { s.Security.Seccomp = "strict" }},
		{"Security.Seccomp", func(s *runtime.Spec) { s.Security.Seccomp = "{}" }},
		{"Devices[0].Source", func(s *runtime.Spec) { s.Devices = []runtime.Device{{Source: "null"}} }},
		{"Devices[0].Target", func(s *runtime.Spec) { s.Devices = []runtime.Device{{Source: "/dev/null", Target: "n"}} }},
		{"Devices[0].Permissions", func(s *runtime.Spec) { s.Devices = []runtime.Device{{Source: "/dev/null", Permissions: "rx"}} }},
	} {
		spec := runtime.Spec{ID: "a", Image: "x"}
		test.change(&spec)
		err := spec.Validate()
		var bad *runtime.SpecError
		if !errors.As(err, &bad) || bad.Field != test.field || bad.Reason == "" {
			t.Errorf("%+v: got %v, want an error of the field %s", spec, err, test.field)
		}
	}
}

func TestValidateAccepts(t *testing.T) {
	for _, spec := range []runtime.Spec{
		{ID: "a", Image: "x"},
		{
			ID: "web.1-x_2", Image: "x", Args: []string{}, Env: []string{"A=", "B=c=d"}, Dir: "/", User: "1:staff",
			NetNS: "/run/ns", Group: "web", Hostname: "web-1",
			Mounts: []runtime.Mount{
				{Target: "/data", Source: "/srv"}, {Target: "/procs", Source: "/srv"},
				{Target: "/tmp", Type: "tmpfs", Size: 1 << 20, Mode: 0o700, Options: []string{"noexec"}},
			},
			Resources: runtime.Resources{CPU: 1500, CPUShares: 10, CPUSet: "0-1,3", Memory: 64 << 20, MemoryRequest: 64 << 20, Pids: 10},
			Ulimits:   []runtime.Ulimit{{Name: "nofile", Soft: 1, Hard: 1}},
			Sysctls:   map[string]string{"net.core.somaxconn": "1", "kernel.shmmax": "1", "kernel.sem": "1", "fs.mqueue.msg_max": "1"},
			Security:  runtime.Security{CapAdd: []string{"net_admin", "CAP_SYS_TIME"}, CapDrop: []string{"all"}, Seccomp: "unconfined"},
			Devices:   []runtime.Device{{Source: "/dev/null", Permissions: "rw"}},
		},
	} {
		if err := spec.Validate(); err != nil {
			t.Errorf("%s: got %v, want it accepted", spec.ID, err)
		}
	}
}

// Every mistake is named at once.
func TestValidateCollects(t *testing.T) {
	err := runtime.Spec{Dir: "x", User: "a b"}.Validate()
	for _, field := range []string{"ID", "Image", "Dir", "User"} {
		if !strings.Contains(fmt.Sprint(err), "container spec: "+field+":") {
			t.Errorf("got %v, want it to name %s too", err, field)
		}
	}
}

func FuzzValidate(f *testing.F) {
	f.Add("a", "x", "A=b", "/data", "net.core.somaxconn", "0-3", "{}")
	f.Fuzz(func(t *testing.T, id, image, env, target, sysctl, cpus, seccomp string) {
		spec := runtime.Spec{
			ID: id, Image: image, Env: []string{env}, Mounts: []runtime.Mount{{Target: target, Source: "/x"}},
			Sysctls: map[string]string{sysctl: "1"}, Resources: runtime.Resources{CPUSet: cpus},
			Security: runtime.Security{Seccomp: seccomp},
		}
		if spec.Validate() != nil {
			return
		}
		// What is accepted is used in paths.
		if strings.ContainsAny(id, "/\x00") || id == "." || id == ".." || strings.Contains(target, "/../") || !strings.HasPrefix(target, "/") {
			t.Errorf("ID %q with a mount at %q is accepted", id, target)
		}
		if strings.HasPrefix(sysctl, "kernel.panic") || strings.HasPrefix(sysctl, "vm.") || strings.Contains(sysctl, "/") {
			t.Errorf("sysctl %q is accepted", sysctl)
		}
	})
}

func ExampleSpec_Validate() {
	spec := runtime.Spec{ID: "web.1", Image: "web:1", Dir: "srv"}
	fmt.Println(spec.Validate())
	// Output: container spec: Dir: "srv": want an absolute path
}
