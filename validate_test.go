package orchestrate

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/autoscale"
	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/volume"
)

// valid is a spec that uses most of what there is and has no mistake.
func valid() Service {
	return Service{
		Name:     "web",
		Labels:   map[string]string{"team": "a", "example.org/tier": "front"},
		Replicas: 3,
		Template: Template{
			Init:     []Container{{Image: "registry.example:5000/tools/migrate:v1", Command: []string{"up"}}},
			Sidecars: []Container{{Name: "proxy", Image: "proxy:2", Readiness: &health.Check{TCP: &health.TCP{Port: 9000}}}},
			Containers: []Container{{
				Image: "web:1",
				Env:   map[string]string{"MODE": "live\nand kicking"},
				Dir:   "/srv", User: "1000:www-data",
				Resources: Resources{CPU: 250, Memory: 64 * MiB, CPULimit: Core, MemoryLimit: 128 * MiB, CPUSet: "0-3,6"},
				Security:  runtime.Security{CapDrop: []string{"ALL"}, CapAdd: []string{"NET_BIND_SERVICE"}, ReadOnlyRoot: true},
				Ulimits:   []runtime.Ulimit{{Name: "nofile", Soft: 1024, Hard: 4096}, {Name: "core", Hard: math.MaxUint64}},
				Sysctls:   map[string]string{"net.core.somaxconn": "1024"},
				Devices:   []runtime.Device{{Source: "/dev/fuse"}},
				Mounts: []Mount{
					{Target: "/data", Volume: "data"},
					{Target: "/tmp", Tmpfs: &Tmpfs{Size: 16 * MiB}},
					{Target: "/data/conf", Bind: "/srv/conf", ReadOnly: true},
				},
				Readiness:  &health.Check{HTTP: &health.HTTP{Port: 8080, Path: "/ready"}, Interval: 2 * time.Second},
				Liveness:   &health.Check{Exec: &health.Exec{Command: []string{"/bin/alive"}}},
				StopSignal: "SIGQUIT",
			}},
			Networks: []string{"front", "back"},
			Ports: []Port{
				{Name: "http", Port: 8080, Virtual: 80, Published: 8080, HostIP: "192.0.2.1"},
				{Port: 8081, Published: 8080, HostIP: "192.0.2.2"},
				{Port: 53, Protocol: UDP},
			},
			Volumes:   []volume.Volume{{Name: "data", Size: GiB}},
			DNS:       DNS{Servers: []string{"192.0.2.53"}, Search: []string{"example.org"}, Options: []string{"ndots:2"}, Hosts: map[string][]string{"db.example": {"2001:db8::1"}}},
			Placement: Placement{Constraints: []string{"node.labels.zone == eu"}, MaxPerNode: 2},
		},
		Update:    UpdatePolicy{Parallelism: "1", Order: StartFirst},
		DependsOn: []Dependency{{Service: "db"}, {Job: "tools/migrate", Condition: Complete}},
		Track:     TrackPolicy{Every: time.Hour, Windows: []Window{{Days: []string{"sat", "sun"}, Start: "02:30", Length: 3 * time.Hour, Zone: "Europe/Berlin"}}},
	}
}

// scaledBy is a policy without a mistake.
func scaledBy(metric string) *autoscale.Policy {
	return &autoscale.Policy{Max: 3, Metrics: []autoscale.Metric{{Name: metric, Utilization: 50}}}
}

// malformed are specs with the paths of their mistakes.
var malformed = []struct {
	name  string
	paths string // separated by blanks
	spoil func(s *Service, c *Container)
}{
	{"no name", "name", func(s *Service, c *Container) { s.Name = "" }},
	{"name in upper case", "name", func(s *Service, c *Container) { s.Name = "Web" }},
	{"name with a dot", "name", func(s *Service, c *Container) { s.Name = "web.1" }},
	{"name with a hyphen at its end", "name", func(s *Service, c *Container) { s.Name = "web-" }},
	{"name of 64 characters", "name", func(s *Service, c *Container) { s.Name = strings.Repeat("a", 64) }},
	{"name leads out", "name", func(s *Service, c *Container) { s.Name = "../etc" }},
	{"namespace with a slash", "namespace", func(s *Service, c *Container) { s.Namespace = "a/b" }},
	{"namespace with a NUL", "namespace", func(s *Service, c *Container) { s.Namespace = "a\x00" }},
	{"label key with a blank", `labels["a b"]`, func(s *Service, c *Container) { s.Labels["a b"] = "" }},
	{"label key empty", `labels[""]`, func(s *Service, c *Container) { s.Labels[""] = "x" }},
	{"label value too long", `labels["team"]`, func(s *Service, c *Container) { s.Labels["team"] = strings.Repeat("x", 4097) }},
	{"label value not UTF-8", `labels["team"]`, func(s *Service, c *Container) { s.Labels["team"] = "\xff" }},
	{"dependency on nothing", "dependsOn[0]", func(s *Service, c *Container) { s.DependsOn = []Dependency{{}} }},
	{"dependency on two", "dependsOn[0]", func(s *Service, c *Container) { s.DependsOn = []Dependency{{Service: "db", Job: "migrate"}} }},
	{"dependency on itself", "dependsOn[1].service", func(s *Service, c *Container) {
		s.DependsOn = []Dependency{{Service: "db"}, {Service: s.Name}}
	}},
	{"dependency twice", "dependsOn[1].service", func(s *Service, c *Container) {
		s.DependsOn = []Dependency{{Service: "other/db"}, {Service: "other/db"}}
	}},
	{"dependency without a name", "dependsOn[0].job", func(s *Service, c *Container) { s.DependsOn = []Dependency{{Job: "other/"}} }},
	{"dependency of two slashes", "dependsOn[0].job", func(s *Service, c *Container) { s.DependsOn = []Dependency{{Job: "a/b/c"}} }},
	{"dependency with the condition of a job", "dependsOn[0].condition", func(s *Service, c *Container) {
		s.DependsOn = []Dependency{{Service: "db", Condition: Complete}}
	}},
	{"dependency with an unknown condition", "dependsOn[0].condition", func(s *Service, c *Container) {
		s.DependsOn = []Dependency{{Job: "migrate", Condition: "started"}}
	}},
	{"dependencies without number", "dependsOn", func(s *Service, c *Container) {
		for i := range 65 {
			s.DependsOn = append(s.DependsOn, Dependency{Service: "s" + strconv.Itoa(i)})
		}
	}},
	{"replicas below none", "replicas", func(s *Service, c *Container) { s.Replicas = -2 }},
	{"autoscaler without a metric", "autoscale.metrics", func(s *Service, c *Container) { s.Autoscale = &autoscale.Policy{Max: 3} }},
	{"autoscaler with bounds the wrong way round", "autoscale.max", func(s *Service, c *Container) { s.Autoscale = scaledBy("cpu"); s.Autoscale.Min = 4 }},
	{"autoscaler that nothing wakes", "autoscale.min", func(s *Service, c *Container) { s.Autoscale = scaledBy("cpu"); s.Autoscale.Min = None }},
	{"autoscaler by a share of nothing", "autoscale.metrics[0].utilization", func(s *Service, c *Container) {
		s.Autoscale = scaledBy("cpu")
		c.Resources = Resources{}
	}},
	{"autoscaler by no container", "autoscale.metrics[0].container", func(s *Service, c *Container) {
		s.Autoscale = scaledBy("cpu")
		s.Autoscale.Metrics[0].Container = "nobody"
	}},
	{"autoscaler by requests without ports", "autoscale.metrics[0].name", func(s *Service, c *Container) {
		s.Autoscale = &autoscale.Policy{Max: 3, Metrics: []autoscale.Metric{{Name: autoscale.Requests, Average: 100}}}
		s.Ports = nil
	}},
	{"autoscaler of an exclusive volume", "autoscale.max", func(s *Service, c *Container) {
		s.Autoscale = scaledBy("cpu")
		s.Replicas, s.Volumes[0].Exclusive, s.Update.Order = 1, true, StopFirst
	}},
	{"autoscaler of a global service", "autoscale", func(s *Service, c *Container) {
		s.Autoscale = scaledBy("cpu")
		s.Mode, s.Replicas, s.Placement.MaxPerNode = Global, 0, 0
	}},
	{"budget of nothing that can be read", "budget.minAvailable", func(s *Service, c *Container) { s.Budget.MinAvailable = "most" }},
	{"budget of more than all", "budget.maxUnavailable", func(s *Service, c *Container) { s.Budget.MaxUnavailable = "101%" }},
	{"budget said twice", "budget.maxUnavailable", func(s *Service, c *Container) { s.Budget = Budget{"1", "1"} }},
	{"budget of a global service", "budget", func(s *Service, c *Container) {
		s.Budget.MinAvailable = "1"
		s.Mode, s.Replicas, s.Placement.MaxPerNode = Global, 0, 0
	}},
	{"replicas absurd", "replicas", func(s *Service, c *Container) { s.Replicas = MaxReplicas + 1 }},
	{"track too often", "track.every", func(s *Service, c *Container) { s.Track.Every = time.Second }},
	{"track in a negative time", "track.every", func(s *Service, c *Container) { s.Track.Every = -time.Hour }},
	{"track windows without every", "track.windows", func(s *Service, c *Container) {
		s.Track = TrackPolicy{Windows: []Window{{Start: "02:00", Length: time.Hour}}}
	}},
	{"track in too many windows", "track.windows", func(s *Service, c *Container) {
		s.Track = TrackPolicy{Every: time.Hour, Windows: make([]Window, 17)}
	}},
	{"track on no day", "track.windows[0].days[1]", func(s *Service, c *Container) {
		s.Track = TrackPolicy{Every: time.Hour, Windows: []Window{{Days: []string{"mon", "Tuesday"}, Start: "02:00", Length: time.Hour}}}
	}},
	{"track on a day twice", "track.windows[0].days[1]", func(s *Service, c *Container) {
		s.Track = TrackPolicy{Every: time.Hour, Windows: []Window{{Days: []string{"mon", "mon"}, Start: "02:00", Length: time.Hour}}}
	}},
	{"track at no time", "track.windows[0].start", func(s *Service, c *Container) {
		s.Track = TrackPolicy{Every: time.Hour, Windows: []Window{{Start: "2 o'clock", Length: time.Hour}}}
	}},
	{"track at hour 24", "track.windows[0].start", func(s *Service, c *Container) {
		s.Track = TrackPolicy{Every: time.Hour, Windows: []Window{{Start: "24:00", Length: time.Hour}}}
	}},
	{"track for no time", "track.windows[0].length", func(s *Service, c *Container) {
		s.Track = TrackPolicy{Every: time.Hour, Windows: []Window{{Start: "02:00"}}}
	}},
	{"track for longer than a day", "track.windows[0].length", func(s *Service, c *Container) {
		s.Track = TrackPolicy{Every: time.Hour, Windows: []Window{{Start: "02:00", Length: 25 * time.Hour}}}
	}},
	{"track in no zone", "track.windows[0].zone", func(s *Service, c *Container) {
		s.Track = TrackPolicy{Every: time.Hour, Windows: []Window{{Start: "02:00", Length: time.Hour, Zone: "Mars/Base"}}}
	}},
	{"track in the machine's zone", "track.windows[0].zone", func(s *Service, c *Container) {
		s.Track = TrackPolicy{Every: time.Hour, Windows: []Window{{Start: "02:00", Length: time.Hour, Zone: "Local"}}}
	}},
	{"no containers", "containers volumes[0].name", func(s *Service, c *Container) { s.Containers = nil }},
	{"too many containers", "containers", func(s *Service, c *Container) {
		for range MaxContainers {
			s.Containers = append(s.Containers, Container{Image: "x"})
		}
	}},

	{"container name with underscore", "containers[0].name", func(s *Service, c *Container) { c.Name = "a_b" }},
	{"container name too long", "containers[0].name", func(s *Service, c *Container) { c.Name = strings.Repeat("a", 33) }},
	{"container name of a sidecar", "containers[0].name", func(s *Service, c *Container) { c.Name = "proxy" }},
	{"container name that is another's default", "containers[0].name", func(s *Service, c *Container) { c.Name = "init0" }},
	{"no image", "containers[0].image", func(s *Service, c *Container) { c.Image = "" }},
	{"image of init in upper case", "init[0].image", func(s *Service, c *Container) { s.Init[0].Image = "Tools" }},
	{"image with a blank", "containers[0].image", func(s *Service, c *Container) { c.Image = "web :1" }},
	{"image with an empty tag", "containers[0].image", func(s *Service, c *Container) { c.Image = "web:" }},
	{"image with a bad tag", "containers[0].image", func(s *Service, c *Container) { c.Image = "web:.1" }},
	{"image with a short digest", "containers[0].image", func(s *Service, c *Container) { c.Image = "web@sha256:abc" }},
	{"image with a digest of md5", "containers[0].image", func(s *Service, c *Container) { c.Image = "web@md5:d41d8cd98f00b204e9800998ecf8427e" }},
	{"image that is a URL", "containers[0].image", func(s *Service, c *Container) { c.Image = "https://host.example/web" }},
	{"image with port 0", "containers[0].image", func(s *Service, c *Container) { c.Image = "host.example:0/web" }},
	{"image with an empty part", "containers[0].image", func(s *Service, c *Container) { c.Image = "a//b" }},
	{"image that leads out", "containers[0].image", func(s *Service, c *Container) { c.Image = "../web" }},
	{"image that is an ID", "containers[0].image", func(s *Service, c *Container) { c.Image = strings.Repeat("a1", 32) }},
	{"image too long", "containers[0].image", func(s *Service, c *Container) { c.Image = strings.Repeat("a/", 128) + "b" }},
	{"pull policy", "containers[0].pull", func(s *Service, c *Container) { c.Pull = "sometimes" }},
	{"entrypoint empty", "containers[0].entrypoint[0]", func(s *Service, c *Container) { c.Entrypoint = []string{""} }},
	{"command with a NUL", "containers[0].command[1]", func(s *Service, c *Container) { c.Command = []string{"a", "b\x00"} }},
	{"env with an empty name", `containers[0].env[""]`, func(s *Service, c *Container) { c.Env[""] = "x" }},
	{"env with = in its name", `containers[0].env["A=B"]`, func(s *Service, c *Container) { c.Env["A=B"] = "x" }},
	{"env with a NUL in its name", `containers[0].env["A\x00"]`, func(s *Service, c *Container) { c.Env["A\x00"] = "x" }},
	{"env with a NUL in its value", `containers[0].env["MODE"]`, func(s *Service, c *Container) { c.Env["MODE"] = "\x00" }},
	{"dir relative", "containers[0].dir", func(s *Service, c *Container) { c.Dir = "srv" }},
	{"dir with dots", "containers[0].dir", func(s *Service, c *Container) { c.Dir = "/srv/../etc" }},
	{"user with two colons", "containers[0].user", func(s *Service, c *Container) { c.User = "a:b:c" }},
	{"user with an empty group", "containers[0].user", func(s *Service, c *Container) { c.User = "1000:" }},
	{"user number too large", "containers[0].user", func(s *Service, c *Container) { c.User = "4294967295" }},
	{"user negative", "containers[0].user", func(s *Service, c *Container) { c.User = "-1" }},
	{"user with a line end", "containers[0].user", func(s *Service, c *Container) { c.User = "a\nroot" }},

	{"cpu negative", "containers[0].resources.cpu", func(s *Service, c *Container) { c.Resources.CPU = -1 }},
	{"cpu above limit", "containers[0].resources.cpu", func(s *Service, c *Container) { c.Resources.CPU = 1001 }},
	{"cpu limit below the quota", "containers[0].resources.cpu containers[0].resources.cpuLimit", func(s *Service, c *Container) { c.Resources.CPULimit = 2 }},
	{"cpu limit absurd", "containers[0].resources.cpuLimit", func(s *Service, c *Container) { c.Resources.CPULimit = math.MaxInt64 }},
	{"memory above limit", "containers[0].resources.memory", func(s *Service, c *Container) { c.Resources.Memory = 129 * MiB }},
	{"memory negative", "containers[0].resources.memory", func(s *Service, c *Container) { c.Resources.Memory = math.MinInt64 }},
	{"memory limit meant as MiB", "containers[0].resources.memoryLimit", func(s *Service, c *Container) { c.Resources = Resources{MemoryLimit: 512} }},
	{"memory limit negative", "containers[0].resources.memoryLimit", func(s *Service, c *Container) { c.Resources = Resources{MemoryLimit: -1} }},
	{"memory overflows together", "containers[0].resources.memory", func(s *Service, c *Container) {
		s.Sidecars[0].Resources.Memory = math.MaxInt64
		c.Resources = Resources{Memory: 1}
	}},
	{"cpuset with letters", "containers[0].resources.cpuSet", func(s *Service, c *Container) { c.Resources.CPUSet = "all" }},
	{"cpuset with an end", "containers[0].resources.cpuSet", func(s *Service, c *Container) { c.Resources.CPUSet = "0," }},
	{"cpuset reversed", "containers[0].resources.cpuSet", func(s *Service, c *Container) { c.Resources.CPUSet = "3-0" }},
	{"cpuset beyond any machine", "containers[0].resources.cpuSet", func(s *Service, c *Container) { c.Resources.CPUSet = "9000" }},
	{"cpuset signed", "containers[0].resources.cpuSet", func(s *Service, c *Container) { c.Resources.CPUSet = "+1" }},

	{"capability unknown", "containers[0].security.capAdd[0]", func(s *Service, c *Container) { c.Security.CapAdd = []string{"NET_ADMINN"} }},
	{"capability twice", "containers[0].security.capAdd[1]", func(s *Service, c *Container) { c.Security.CapAdd = []string{"NET_ADMIN", "CAP_NET_ADMIN"} }},
	{"capability added and dropped", "containers[0].security.capDrop[0]", func(s *Service, c *Container) {
		c.Security.CapAdd, c.Security.CapDrop = []string{"CHOWN"}, []string{"CHOWN"}
	}},
	{"privileged with dropped capabilities", "containers[0].security.capDrop", func(s *Service, c *Container) { c.Security.Privileged = true }},
	{"seccomp by a name", "containers[0].security.seccomp", func(s *Service, c *Container) { c.Security.Seccomp = "strict" }},
	{"seccomp without an action", "containers[0].security.seccomp", func(s *Service, c *Container) { c.Security.Seccomp = `{}` }},
	{"seccomp with an unknown action", "containers[0].security.seccomp", func(s *Service, c *Container) { c.Security.Seccomp = `{"defaultAction":"ALLOW"}` }},
	{"seccomp of Docker", "containers[0].security.seccomp", func(s *Service, c *Container) {
		c.Security.Seccomp = `{"defaultAction":"SCMP_ACT_ERRNO","archMap":[]}`
	}},
	{"seccomp with bad rules", "containers[0].security.seccomp containers[0].security.seccomp containers[0].security.seccomp", func(s *Service, c *Container) {
		c.Security.Seccomp = `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":[],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"op":"EQ"}]}]}`
	}},
	{"ulimit unknown", "containers[0].ulimits[0].name", func(s *Service, c *Container) { c.Ulimits[0].Name = "files" }},
	{"ulimit twice", "containers[0].ulimits[1].name", func(s *Service, c *Container) { c.Ulimits[1].Name = "nofile"; c.Ulimits[1].Hard = 9 }},
	{"ulimit soft above hard", "containers[0].ulimits[0].soft", func(s *Service, c *Container) { c.Ulimits[0].Soft = 4097 }},
	{"ulimit of files without end", "containers[0].ulimits[0].hard", func(s *Service, c *Container) { c.Ulimits[0].Hard = math.MaxUint64 }},
	{"sysctl of the node", `containers[0].sysctls["vm.swappiness"]`, func(s *Service, c *Container) { c.Sysctls["vm.swappiness"] = "1" }},
	{"sysctl with slashes", `containers[0].sysctls["net/core/somaxconn"]`, func(s *Service, c *Container) { c.Sysctls["net/core/somaxconn"] = "1" }},
	{"sysctl that leads out", `containers[0].sysctls["net...kernel.panic"]`, func(s *Service, c *Container) { c.Sysctls["net...kernel.panic"] = "1" }},
	{"sysctl of the hostname", `containers[0].sysctls["kernel.hostname"]`, func(s *Service, c *Container) { c.Sysctls["kernel.hostname"] = "x" }},
	{"sysctl with a line end", `containers[0].sysctls["net.core.somaxconn"]`, func(s *Service, c *Container) { c.Sysctls["net.core.somaxconn"] = "1\n" }},
	{"sysctls that disagree", `containers[0].sysctls["net.core.somaxconn"]`, func(s *Service, c *Container) {
		s.Sidecars[0].Sysctls = map[string]string{"net.core.somaxconn": "1"}
	}},
	{"device relative", "containers[0].devices[0].source", func(s *Service, c *Container) { c.Devices[0].Source = "fuse" }},
	{"device target not clean", "containers[0].devices[0].target", func(s *Service, c *Container) { c.Devices[0].Target = "/dev//fuse" }},
	{"device permissions", "containers[0].devices[0].permissions", func(s *Service, c *Container) { c.Devices[0].Permissions = "rx" }},
	{"device permissions twice", "containers[0].devices[0].permissions", func(s *Service, c *Container) { c.Devices[0].Permissions = "rr" }},
	{"device twice", "containers[0].devices[1].target", func(s *Service, c *Container) { c.Devices = append(c.Devices, c.Devices[0]) }},

	{"mount without a target", "containers[0].mounts[1].target", func(s *Service, c *Container) { c.Mounts[1].Target = "" }},
	{"mount relative", "containers[0].mounts[2].target", func(s *Service, c *Container) { c.Mounts[2].Target = "conf" }},
	{"mount with dots", "containers[0].mounts[2].target", func(s *Service, c *Container) { c.Mounts[2].Target = "/data/../etc" }},
	{"mount over the root", "containers[0].mounts[0].target", func(s *Service, c *Container) { c.Mounts[0].Target = "/" }},
	{"mount in proc", "containers[0].mounts[0].target", func(s *Service, c *Container) { c.Mounts[0].Target = "/proc/sys" }},
	{"mount over the agent's file", "containers[0].mounts[2].target", func(s *Service, c *Container) { c.Mounts[2].Target = "/etc/hosts" }},
	{"mount twice", "containers[0].mounts[1].target", func(s *Service, c *Container) { c.Mounts[1].Target = "/data" }},
	{"mount hides another", "containers[0].mounts[2].target", func(s *Service, c *Container) {
		c.Mounts[0].Target, c.Mounts[2].Target = "/a/b", "/a"
	}},
	{"mount of nothing", "containers[0].mounts[2]", func(s *Service, c *Container) { c.Mounts[2].Bind = "" }},
	{"mount of two", "containers[0].mounts[0].bind", func(s *Service, c *Container) { c.Mounts[0].Bind = "/x" }},
	{"mount of three", "containers[0].mounts[0].bind", func(s *Service, c *Container) { c.Mounts[0].Bind = "/x"; c.Mounts[0].Tmpfs = &Tmpfs{} }},
	{"bind relative", "containers[0].mounts[2].bind", func(s *Service, c *Container) { c.Mounts[2].Bind = "./conf" }},
	{"bind not clean", "containers[0].mounts[2].bind", func(s *Service, c *Container) { c.Mounts[2].Bind = "/srv/../etc" }},
	{"tmpfs negative", "containers[0].mounts[1].tmpfs.size", func(s *Service, c *Container) { c.Mounts[1].Tmpfs.Size = -1 }},
	{"tmpfs mode", "containers[0].mounts[1].tmpfs.mode", func(s *Service, c *Container) { c.Mounts[1].Tmpfs.Mode = 0o10000 }},
	{"volume name", "containers[0].mounts[0].volume volumes[0].name volumes[0].name", func(s *Service, c *Container) { c.Mounts[0].Volume = "-d"; s.Volumes[0].Name = ".d" }},
	{"container label of the agent", `containers[0].labels["orchestrate.task"]`, func(s *Service, c *Container) { c.Labels = map[string]string{"orchestrate.task": "x"} }},

	{"container label too long", `containers[0].labels["k"]`, func(s *Service, c *Container) {
		c.Labels = map[string]string{"k": strings.Repeat("x", 4096)}
	}},
	{"privileged with a seccomp profile", "containers[0].security.seccomp", func(s *Service, c *Container) {
		c.Security = runtime.Security{Privileged: true, Seccomp: `{"defaultAction":"SCMP_ACT_ALLOW"}`}
	}},
	{"sysctl without a value", `containers[0].sysctls["fs.mqueue.msg_max"]`, func(s *Service, c *Container) { c.Sysctls["fs.mqueue.msg_max"] = "" }},
	{"path too long", "containers[0].dir", func(s *Service, c *Container) { c.Dir = strings.Repeat("/d", 2048) }},
	{"mounts without end", "containers[0].mounts volumes[0].name", func(s *Service, c *Container) { c.Mounts = make([]Mount, 257) }},
	{"log files without end", "containers[0].logs.maxFiles", func(s *Service, c *Container) { c.Logs.MaxFiles = 1001 }},

	{"init with readiness", "init[0].readiness", func(s *Service, c *Container) { s.Init[0].Readiness = c.Readiness }},
	{"init with liveness and startup", "init[0].startup init[0].liveness", func(s *Service, c *Container) {
		s.Init[0].Startup, s.Init[0].Liveness = c.Liveness, c.Liveness
	}},
	{"check of no kind", "containers[0].startup", func(s *Service, c *Container) { c.Startup = &health.Check{} }},
	{"check without a port", "containers[0].readiness.http.port", func(s *Service, c *Container) { c.Readiness.HTTP.Port = 0 }},
	{"check of two kinds", "containers[0].readiness.tcp", func(s *Service, c *Container) { c.Readiness.TCP = &health.TCP{Port: 1} }},
	{"check too often", "containers[0].readiness.interval", func(s *Service, c *Container) { c.Readiness.Interval = 10 }},
	{"check with a negative timeout", "sidecars[0].readiness.timeout", func(s *Service, c *Container) { s.Sidecars[0].Readiness.Timeout = -1 }},
	{"check without a command", "containers[0].liveness.exec.command", func(s *Service, c *Container) { c.Liveness.Exec.Command = nil }},
	{"stop signal unknown", "containers[0].stopSignal", func(s *Service, c *Container) { c.StopSignal = "SIGSTOPPED" }},
	{"stop signal 0", "containers[0].stopSignal", func(s *Service, c *Container) { c.StopSignal = "0" }},
	{"stop signal beyond real time", "containers[0].stopSignal", func(s *Service, c *Container) { c.StopSignal = "SIGRTMIN+31" }},
	{"log bounds negative", "containers[0].logs.maxBytes containers[0].logs.maxFiles", func(s *Service, c *Container) {
		c.Logs = runtime.LogLimits{MaxBytes: -1, MaxFiles: -1}
	}},

	{"network name", "networks[1]", func(s *Service, c *Container) { s.Networks[1] = "Back" }},
	{"network name too long", "networks[1]", func(s *Service, c *Container) { s.Networks[1] = strings.Repeat("n", 33) }},
	{"network empty", "networks[0]", func(s *Service, c *Container) { s.Networks[0] = "" }},
	{"network twice", "networks[1]", func(s *Service, c *Container) { s.Networks[1] = "front" }},
	{"host network and networks", `containers[0].sysctls["net.core.somaxconn"] networks ports[0].virtual ports[0].published ports[0].hostIP ports[1].published ports[1].hostIP`,
		func(s *Service, c *Container) { s.HostNetwork = true }},
	{"host network and hostname", "hostname", func(s *Service, c *Container) {
		s.HostNetwork, s.Networks, s.Ports, s.Hostname, c.Sysctls = true, nil, nil, "h", nil
	}},
	{"networks without end", "networks", func(s *Service, c *Container) { s.Networks = make([]string, 17) }},
	{"host network and one port twice", "ports[1].port", func(s *Service, c *Container) {
		s.HostNetwork, s.Networks, c.Sysctls = true, nil, nil
		s.Ports = []Port{{Port: 80}, {Port: 80}, {Port: 80, Protocol: UDP}}
	}},
	{"ports without end", "ports", func(s *Service, c *Container) { s.Ports = make([]Port, 1025) }},
	{"port 0", "ports[0].port", func(s *Service, c *Container) { s.Ports[0] = Port{Virtual: 1} }},
	{"port name", "ports[0].name", func(s *Service, c *Container) { s.Ports[0].Name = "HTTP" }},
	{"port name twice", "ports[1].name", func(s *Service, c *Container) { s.Ports[1].Name = "http" }},
	{"port protocol", "ports[0].protocol", func(s *Service, c *Container) { s.Ports[0].Protocol = "sctp" }},
	{"port twice", "ports[3].port", func(s *Service, c *Container) { s.Ports = append(s.Ports, s.Ports[2]) }},
	{"virtual port twice", "ports[1].virtual", func(s *Service, c *Container) { s.Ports[1].Virtual = 80 }},
	{"published twice", "ports[1].published", func(s *Service, c *Container) { s.Ports[1].HostIP = "192.0.2.1" }},
	{"published on one and on all", "ports[1].published", func(s *Service, c *Container) { s.Ports[1].HostIP = "" }},
	{"published on one and on 0.0.0.0", "ports[1].published", func(s *Service, c *Container) { s.Ports[1].HostIP = "0.0.0.0" }},
	{"host IP that is a name", "ports[0].hostIP", func(s *Service, c *Container) { s.Ports[0].HostIP = "localhost" }},
	{"host IP with a zone", "ports[0].hostIP", func(s *Service, c *Container) { s.Ports[0].HostIP = "fe80::1%eth0" }},
	{"ingress that is not known", "ports[0].ingress", func(s *Service, c *Container) { s.Ports[0].Ingress = "some" }},
	{"ingress of what is not published", "ports[0].ingress", func(s *Service, c *Container) {
		s.Ports[0].Published, s.Ports[0].HostIP, s.Ports[0].Ingress = 0, "", IngressLocal
	}},
	{"host IP of what is not published", "ports[0].hostIP", func(s *Service, c *Container) { s.Ports[0].Published = 0 }},

	{"volume not mounted", "volumes[1].name", func(s *Service, c *Container) { s.Volumes = append(s.Volumes, volume.Volume{Name: "x"}) }},
	{"volume without a name", "volumes[1].name", func(s *Service, c *Container) { s.Volumes = append(s.Volumes, volume.Volume{}) }},
	{"volume label", `volumes[0].labels["a b"]`, func(s *Service, c *Container) { s.Volumes[0].Labels = map[string]string{"a b": "x"} }},
	{"volume declared twice", "volumes[1].name", func(s *Service, c *Container) { s.Volumes = append(s.Volumes, s.Volumes[0]) }},
	{"volume of negative size", "volumes[0].size", func(s *Service, c *Container) { s.Volumes[0].Size = -1 }},
	{"volume name without room for its namespace", "containers[0].mounts[0].volume volumes[0].name", func(s *Service, c *Container) {
		s.Volumes[0].Name = strings.Repeat("v", 65)
		c.Mounts[0].Volume = s.Volumes[0].Name
	}},
	{"volume option without a name", "volumes[0].options", func(s *Service, c *Container) { s.Volumes[0].Options = map[string]string{"": "x"} }},
	{"exclusive volume for many", "replicas update.order", func(s *Service, c *Container) { s.Volumes[0].Exclusive = true }},

	{"mode", "mode", func(s *Service, c *Container) { s.Mode = "everywhere" }},
	{"global with replicas", "replicas", func(s *Service, c *Container) { s.Mode, s.Placement.MaxPerNode = Global, 0 }},
	{"global with none", "replicas placement.maxPerNode", func(s *Service, c *Container) { s.Mode, s.Replicas = Global, None }},
	{"global and stateful", "stateful update.order", func(s *Service, c *Container) {
		s.Mode, s.Replicas, s.Placement.MaxPerNode, s.Stateful = Global, 0, 0, &Stateful{}
	}},
	{"stateful that starts first", "update.order", func(s *Service, c *Container) { s.Stateful = &Stateful{} }},
	{"stateful with a name too long", "name update.order", func(s *Service, c *Container) {
		s.Name, s.Stateful = strings.Repeat("n", 56), &Stateful{}
	}},
	{"stateful with one hostname", "hostname update.order", func(s *Service, c *Container) { s.Hostname, s.Stateful = "db", &Stateful{} }},
	{"stateful on the host's network", "hostNetwork", func(s *Service, c *Container) {
		s.Stateful, s.Update.Order = &Stateful{}, StopFirst
		s.HostNetwork, s.Networks, s.Ports, c.Sysctls = true, nil, nil, nil
	}},
	{"stateful fields", "stateful.order stateful.partition stateful.whenScaled stateful.whenRemoved", func(s *Service, c *Container) {
		s.Update.Order = StopFirst
		s.Stateful = &Stateful{Order: "random", Partition: -1, WhenScaled: "keep", WhenRemoved: "drop"}
	}},
	{"slots in order and several at a time", "update.parallelism update.maxUnavailable", func(s *Service, c *Container) {
		s.Stateful, s.Update = &Stateful{}, UpdatePolicy{Parallelism: "2", MaxUnavailable: "50%"}
	}},
	{"slot volume without slots", "slotVolumes", func(s *Service, c *Container) { s.SlotVolumes, s.Volumes = s.Volumes, nil }},
	{"slot volumes", `slotVolumes[0].name slotVolumes[0].exclusive slotVolumes[1].name slotVolumes[1].size slotVolumes[1].labels["a b"]`, func(s *Service, c *Container) {
		s.Update.Order, s.Stateful = StopFirst, &Stateful{}
		s.SlotVolumes = []volume.Volume{{Name: "data", Exclusive: true}, {Name: "log", Size: -1, Labels: map[string]string{"a b": "x"}}}
	}},
	{"slot volume whose full name is too long", "slotVolumes[0].name", func(s *Service, c *Container) {
		s.Namespace, s.Name, s.Update.Order, s.Stateful = strings.Repeat("n", 40), strings.Repeat("s", 40), StopFirst, &Stateful{}
		c.Mounts[0].Volume = strings.Repeat("v", 60)
		s.SlotVolumes, s.Volumes = []volume.Volume{{Name: c.Mounts[0].Volume}}, nil
	}},

	{"hostname", "hostname", func(s *Service, c *Container) { s.Hostname = "my_host" }},
	{"hostname too long", "hostname", func(s *Service, c *Container) { s.Hostname = strings.Repeat("a.", 32) + "b" }},
	{"DNS server that is a name", "dns.servers[0]", func(s *Service, c *Container) { s.DNS.Servers[0] = "dns.example" }},
	{"DNS servers beyond the third", "dns.servers", func(s *Service, c *Container) { s.DNS.Servers = slices.Repeat(s.DNS.Servers, 4) }},
	{"DNS search", "dns.search[0]", func(s *Service, c *Container) { s.DNS.Search[0] = "a..b" }},
	{"DNS search too long", "dns.search", func(s *Service, c *Container) { s.DNS.Search = slices.Repeat(s.DNS.Search, 33) }},
	{"DNS option", "dns.options[0]", func(s *Service, c *Container) { s.DNS.Options[0] = "ndots:two" }},
	{"DNS option without its number", "dns.options[0]", func(s *Service, c *Container) { s.DNS.Options[0] = "ndots" }},
	{"DNS option with a second line", "dns.options[0]", func(s *Service, c *Container) { s.DNS.Options[0] = "rotate\nnameserver 192.0.2.66" }},
	{"host name", `dns.hosts["a b"]`, func(s *Service, c *Container) { s.DNS.Hosts["a b"] = []string{"192.0.2.1"} }},
	{"host without an address", `dns.hosts["db.example"]`, func(s *Service, c *Container) { s.DNS.Hosts["db.example"] = nil }},
	{"host with a name for an address", `dns.hosts["db.example"][0]`, func(s *Service, c *Container) { s.DNS.Hosts["db.example"][0] = "db" }},

	{"restart condition", "restart.condition", func(s *Service, c *Container) { s.Restart.Condition = "unless-stopped" }},
	{"restart attempts", "restart.attempts", func(s *Service, c *Container) { s.Restart.Attempts = math.MaxInt }},
	{"restart back-off negative", "restart.backoff", func(s *Service, c *Container) { s.Restart.Backoff = -time.Second }},
	{"restart back-off in reverse", "restart.maxBackoff", func(s *Service, c *Container) {
		s.Restart.Backoff, s.Restart.MaxBackoff = time.Minute, time.Second
	}},
	{"restart reset absurd", "restart.reset", func(s *Service, c *Container) { s.Restart.Reset = math.MaxInt64 }},
	{"strategy", "placement.strategy", func(s *Service, c *Container) { s.Placement.Strategy = "bin pack" }},
	{"constraint", "placement.constraints[0]", func(s *Service, c *Container) { s.Placement.Constraints[0] = "zone = eu" }},
	{"constraint empty", "placement.constraints[0]", func(s *Service, c *Container) { s.Placement.Constraints[0] = "" }},
	{"constraint twice", "placement.constraints[1]", func(s *Service, c *Container) { s.Placement.Constraints = slices.Repeat(s.Placement.Constraints, 2) }},
	{"constraints without end", "placement.constraints", func(s *Service, c *Container) { s.Placement.Constraints = slices.Repeat(s.Placement.Constraints, 65) }},
	{"max per node negative", "placement.maxPerNode", func(s *Service, c *Container) { s.Placement.MaxPerNode = -1 }},
	{"priority", "placement.priority", func(s *Service, c *Container) { s.Placement.Priority = math.MinInt }},
	{"stop grace negative", "stopGrace", func(s *Service, c *Container) { s.StopGrace = -1 }},
	{"stop grace without a unit", "stopGrace", func(s *Service, c *Container) { s.StopGrace = 30 }},
	{"stop grace absurd", "stopGrace", func(s *Service, c *Container) { s.StopGrace = 8 * 24 * time.Hour }},
	{"drain delay absurd", "drainDelay", func(s *Service, c *Container) { s.DrainDelay = 1000 * time.Hour }},
	{"update parallelism", "update.parallelism", func(s *Service, c *Container) { s.Update.Parallelism = "-1" }},
	{"update parallelism of nothing", "update.parallelism", func(s *Service, c *Container) { s.Update.Parallelism = "0%" }},
	{"update parallelism above all", "update.parallelism", func(s *Service, c *Container) { s.Update.Parallelism = "101%" }},
	{"update surge as a word", "update.maxSurge", func(s *Service, c *Container) { s.Update.MaxSurge = "some" }},
	{"update surge of nothing, start-first", "update.maxSurge", func(s *Service, c *Container) { s.Update.MaxSurge = "0" }},
	{"update surge, stop-first", "update.maxSurge", func(s *Service, c *Container) { s.Update.Order, s.Update.MaxSurge = StopFirst, "1" }},
	{"update unavailable negative", "update.maxUnavailable", func(s *Service, c *Container) { s.Update.MaxUnavailable = "-25%" }},
	{"update unavailable absurd", "update.maxUnavailable", func(s *Service, c *Container) { s.Update.MaxUnavailable = "1000001" }},
	{"update with nothing unavailable, stop-first", "update.maxUnavailable", func(s *Service, c *Container) {
		s.Update.Order, s.Update.MaxUnavailable = StopFirst, "0%"
	}},
	{"update strategy", "update.strategy", func(s *Service, c *Container) { s.Update.Strategy = "red-black" }},
	{"update canary of none", "update.canary.tasks", func(s *Service, c *Container) { s.Update.Strategy, s.Update.Canary.Tasks = CanaryUpdate, "0%" }},
	{"update canary of a word", "update.canary.tasks", func(s *Service, c *Container) { s.Update.Strategy, s.Update.Canary.Tasks = CanaryUpdate, "few" }},
	{"update canary baked for ever", "update.canary.bake", func(s *Service, c *Container) {
		s.Update.Strategy, s.Update.Canary.Bake = CanaryUpdate, 1000*time.Hour
	}},
	{"update canary baked negatively", "update.canary.bake", func(s *Service, c *Container) { s.Update.Strategy, s.Update.Canary.Bake = CanaryUpdate, -1 }},
	{"update canary without its strategy", "update.canary", func(s *Service, c *Container) { s.Update.Canary.Tasks = "1" }},
	{"update blue/green without its strategy", "update.blueGreen", func(s *Service, c *Container) { s.Update.BlueGreen.Manual = true }},
	{"update blue/green baked without a unit", "update.blueGreen.bake", func(s *Service, c *Container) {
		s.Update.Strategy, s.Update.BlueGreen.Bake = BlueGreenUpdate, 60
	}},
	{"update canary, stop-first", "update.strategy", func(s *Service, c *Container) { s.Update.Strategy, s.Update.Order = CanaryUpdate, StopFirst }},
	{"update blue/green without a surge", "update.strategy", func(s *Service, c *Container) {
		s.Update.Strategy, s.Update.Order, s.Update.MaxSurge = BlueGreenUpdate, OrderAuto, "0"
	}},
	{"update blue/green of the nodes' ports", "update.strategy", func(s *Service, c *Container) {
		s.Update.Strategy, s.HostNetwork, s.Networks = BlueGreenUpdate, true, nil
		s.Ports, s.DNS, c.Sysctls = []Port{{Port: 80}}, DNS{}, nil
	}},
	{"update with no surge and nothing unavailable", "update.maxUnavailable", func(s *Service, c *Container) {
		s.Update.Order, s.Update.MaxSurge, s.Update.MaxUnavailable = OrderAuto, "0", "0"
	}},
	{"update action", "update.onFailure", func(s *Service, c *Container) { s.Update.OnFailure = "retry" }},
	{"update order", "update.order", func(s *Service, c *Container) { s.Update.Order = "rolling" }},
	{"update deadline before monitor", "update.progressDeadline", func(s *Service, c *Container) {
		s.Update.Monitor, s.Update.ProgressDeadline = time.Minute, time.Minute
	}},
	{"update deadline negative", "update.progressDeadline", func(s *Service, c *Container) { s.Update.ProgressDeadline = -1 }},
	{"update failures", "update.maxFailures", func(s *Service, c *Container) { s.Update.MaxFailures = -3 }},
	{"lost after without a unit", "lostAfter", func(s *Service, c *Container) { s.LostAfter = 30 }},
	{"lost after absurd", "lostAfter", func(s *Service, c *Container) { s.LostAfter = 1000 * time.Hour }},
	{"lost after, returning of a word", "returning", func(s *Service, c *Container) { s.LostAfter, s.Returning = -1, "keep" }},
	{"lost after, global", "lostAfter returning", func(s *Service, c *Container) {
		s.Mode, s.Replicas, s.Placement.MaxPerNode = Global, 0, 0
		s.LostAfter, s.Returning = time.Minute, KeepOriginal
	}},
	{"spec too large for a store", "", func(s *Service, c *Container) { c.Env["BLOB"] = strings.Repeat("x", MaxSpecBytes) }},
}

func TestMalformed(t *testing.T) {
	if len(malformed) < 60 {
		t.Fatalf("%d malformed specs, want at least 60", len(malformed))
	}
	if err := valid().Validate(); err != nil {
		t.Fatalf("the spec that is spoilt has mistakes of its own: %v", err)
	}
	for _, tt := range malformed {
		t.Run(tt.name, func(t *testing.T) {
			s := valid()
			tt.spoil(&s, &s.Containers[0])
			err := s.Validate()
			var invalid *ValidationError
			if !errors.As(err, &invalid) || !errors.Is(err, ErrInvalid) {
				t.Fatalf("got %v, want a *ValidationError that matches ErrInvalid", err)
			}
			var got []string
			for _, p := range invalid.Problems {
				got = append(got, p.Path)
				if p.Reason == "" || strings.Contains(p.Reason, "%!") {
					t.Errorf("reason %q of %s: want what is wrong and what would be right", p.Reason, p.Path)
				}
			}
			if want := splitPaths(tt.paths); !slices.Equal(got, want) {
				t.Errorf("paths:\n got %q\nwant %q\n%v", got, want, err)
			}
		})
	}
}

// splitPaths separates paths by the blanks that are not in a key.
func splitPaths(s string) []string {
	quoted := false
	paths := strings.FieldsFunc(s, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return r == ' ' && !quoted
	})
	if len(paths) == 0 {
		paths = []string{""}
	}
	return paths
}
