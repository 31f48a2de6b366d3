package orchestrate

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/volume"
)

func TestDefaultsAreDocumentedOnes(t *testing.T) {
	s := Service{Name: "web", Template: Template{
		Init:     []Container{{Image: "i"}, {Image: "i"}},
		Sidecars: []Container{{Image: "s"}},
		Containers: []Container{
			{Image: "a", Resources: Resources{CPULimit: 500, MemoryLimit: GiB}, Devices: []runtime.Device{{Source: "/dev/fuse"}},
				Mounts: []Mount{{Target: "/t", Tmpfs: &Tmpfs{}}}, Startup: &health.Check{HTTP: &health.HTTP{Port: 80}}},
			{Image: "b"},
		},
		Ports: []Port{{Port: 80}},
	}}.WithDefaults()
	first := s.Containers[0]
	for _, tt := range []struct {
		field     string
		got, want any
	}{
		{"namespace", s.Namespace, "default"},
		{"replicas", s.Replicas, 1},
		{"init[0].name", s.Init[0].Name, "init0"},
		{"init[1].name", s.Init[1].Name, "init1"},
		{"sidecars[0].name", s.Sidecars[0].Name, "sidecar0"},
		{"containers[0].name", first.Name, "main"},
		{"containers[1].name", s.Containers[1].Name, "main1"},
		{"cpu", first.Resources.CPU, int64(500)},
		{"memory", first.Resources.Memory, GiB},
		{"cpu without a limit", s.Containers[1].Resources.CPU, int64(0)},
		{"pids", first.Resources.Pids, int64(4096)},
		{"device", first.Devices[0], runtime.Device{Source: "/dev/fuse", Target: "/dev/fuse", Permissions: "rwm"}},
		{"tmpfs", *first.Mounts[0].Tmpfs, Tmpfs{Mode: 0o1777}},
		{"startup", *first.Startup, health.Check{HTTP: &health.HTTP{Port: 80, Path: "/"},
			Interval: 10 * time.Second, Timeout: time.Second, Failures: 3, Successes: 1}},
		{"logs", first.Logs, runtime.LogLimits{MaxBytes: 16 << 20, MaxFiles: 2}},
		{"stop signal stays the image's", first.StopSignal, ""},
		{"networks", s.Networks, []string{"default"}},
		{"port", s.Ports[0], Port{Port: 80, Virtual: 80, Protocol: TCP}},
		{"restart", s.Restart, RestartPolicy{Condition: RestartAlways, Attempts: 10, Backoff: 100 * time.Millisecond,
			MaxBackoff: 5 * time.Minute, Reset: 10 * time.Minute}},
		{"strategy", s.Placement.Strategy, "spread"},
		{"stopGrace", s.StopGrace, 10 * time.Second},
		{"drainDelay", s.DrainDelay, time.Second},
		{"update", s.Update, UpdatePolicy{Strategy: RollingUpdate, Order: OrderAuto, Monitor: 10 * time.Second, ProgressDeadline: 10 * time.Minute, OnFailure: RollBack}},
	} {
		if !reflect.DeepEqual(tt.got, tt.want) {
			t.Errorf("%s: got %+v, want %+v", tt.field, tt.got, tt.want)
		}
	}
}

func TestDefaultsKeepWhatSaysNone(t *testing.T) {
	s := Service{Name: "web", Replicas: None, Template: Template{
		Containers: []Container{{Image: "a", Resources: Resources{Pids: -1}}},
		Ports:      []Port{{Port: 80}},
		Restart:    RestartPolicy{Attempts: -1, MaxBackoff: 10 * time.Millisecond},
		DrainDelay: -1,
	}, Update: UpdatePolicy{Monitor: -1}}
	got := s.WithDefaults()
	if got.Replicas != None || got.Containers[0].Resources.Pids != -1 || got.Restart.Attempts != -1 || got.DrainDelay != -1 || got.Update.Monitor != -1 {
		t.Errorf("got %+v, want every negative value kept", got)
	}
	if got.Restart.Backoff != 10*time.Millisecond {
		t.Errorf("back-off %v, want no more than MaxBackoff, 10ms", got.Restart.Backoff)
	}
	if err := s.Validate(); err != nil {
		t.Errorf("got %v, want no mistake: negative means none or no end there", err)
	}
	host := Service{Name: "a", Template: Template{HostNetwork: true, Containers: []Container{{Image: "a"}}, Ports: []Port{{Port: 80}}}}
	if got := host.WithDefaults(); got.Networks != nil || got.Ports[0].Virtual != 0 {
		t.Errorf("got networks %q and %+v, want none and no virtual port with HostNetwork", got.Networks, got.Ports[0])
	}
	if err := host.Validate(); err != nil {
		t.Error(err)
	}
}

// TestDefaultsShareNothing writes into everything that the copy can reach.
func TestDefaultsShareNothing(t *testing.T) {
	s := valid()
	before, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	c := s.WithDefaults()
	walk(reflect.ValueOf(&c), "", "", func(_, _ string, v reflect.Value) {
		switch {
		case v.Kind() == reflect.Map:
			v.Clear()
		case v.CanSet() && v.Kind() == reflect.String:
			v.SetString("scribble")
		case v.CanSet() && v.CanInt():
			v.SetInt(77)
		}
	})
	if after, _ := json.Marshal(s); !bytes.Equal(before, after) {
		t.Errorf("writing into the copy changed the caller's value:\n got %s\nwant %s", after, before)
	}
	if reflect.DeepEqual(c, s) || c.Containers[0].Image != "scribble" {
		t.Error("the walk wrote nothing: the test shows nothing")
	}
	n := Network{Name: "a", Subnets: []string{"x"}, Options: map[string]string{"a": "b"}}
	m := n.WithDefaults()
	m.Subnets[0], m.Options["a"] = "y", "c"
	if n.Subnets[0] != "x" || n.Options["a"] != "b" {
		t.Error("the copy of a Network shares memory with it")
	}
}

// anyService draws specs, most of them with mistakes and many without.
func anyService() *rapid.Generator[Service] {
	pick := func(t *rapid.T, of ...string) string { return rapid.SampledFrom(of).Draw(t, "text") }
	num := func(t *rapid.T, of ...int64) int64 { return rapid.SampledFrom(of).Draw(t, "number") }
	dur := func(t *rapid.T) time.Duration {
		return rapid.SampledFrom([]time.Duration{0, 0, 0, -1, 1, time.Millisecond, time.Minute, 1 << 62}).Draw(t, "duration")
	}
	container := rapid.Custom(func(t *rapid.T) Container {
		c := Container{
			Name: pick(t, "", "", "main", "main1", "a", "A"), Image: pick(t, "web:1", "a", "a/b@c", ""),
			Resources: Resources{CPU: num(t, 0, 0, 1, -1, 5000), CPULimit: num(t, 0, 0, -1, 9, 1000), MemoryLimit: num(t, 0, 0, 5, GiB)},
			Env:       rapid.SampledFrom([]map[string]string{nil, {}, {"A": ""}, {"": "x"}}).Draw(t, "env"),
			Command:   rapid.SampledFrom([][]string{nil, {}, {""}, {"a", "\x00"}}).Draw(t, "command"),
		}
		if rapid.Bool().Draw(t, "mount") {
			c.Mounts = []Mount{{Target: pick(t, "/a", "/b/", ""), Volume: pick(t, "", "v"), Tmpfs: rapid.SampledFrom([]*Tmpfs{nil, {}, {Size: -1}}).Draw(t, "tmpfs")}}
		}
		if rapid.Bool().Draw(t, "check") {
			c.Liveness = &health.Check{TCP: &health.TCP{Port: uint16(num(t, 0, 80))}, Interval: dur(t), Timeout: dur(t)}
		}
		return c
	})
	return rapid.Custom(func(t *rapid.T) Service {
		s := Service{Namespace: pick(t, "", "", "a", "A"), Name: pick(t, "web", "web", ""), Replicas: int(num(t, 0, 1, -1, -2, 5))}
		s.Init = rapid.SliceOfN(container, 0, 1).Draw(t, "init")
		s.Containers = rapid.SliceOfN(container, 0, 2).Draw(t, "containers")
		s.HostNetwork = rapid.Bool().Draw(t, "host")
		s.Networks = rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "default"}), 0, 2).Draw(t, "networks")
		for range rapid.IntRange(0, 2).Draw(t, "ports") {
			s.Ports = append(s.Ports, Port{Port: uint16(num(t, 0, 80, 81)), Virtual: uint16(num(t, 0, 0, 80)), Published: uint16(num(t, 0, 0, 80))})
		}
		if rapid.Bool().Draw(t, "volume") {
			s.Volumes = []volume.Volume{{Name: "v", Size: num(t, 0, -1), Exclusive: rapid.Bool().Draw(t, "exclusive")}}
		}
		s.Mode = Mode(pick(t, "", "", "replicated", "global"))
		if rapid.Bool().Draw(t, "stateful") {
			s.Stateful = &Stateful{Order: SlotOrder(pick(t, "", "parallel", "?")), Partition: int(num(t, 0, 1, -1)), WhenScaled: VolumePolicy(pick(t, "", "delete"))}
			if rapid.Bool().Draw(t, "slot volume") {
				s.SlotVolumes, s.Volumes = s.Volumes, nil
			}
		}
		s.StopGrace, s.DrainDelay = dur(t), dur(t)
		s.Restart = RestartPolicy{Backoff: dur(t), MaxBackoff: dur(t), Reset: dur(t)}
		s.Update = UpdatePolicy{Monitor: dur(t), ProgressDeadline: dur(t), Order: UpdateOrder(pick(t, "", "auto", "start-first"))}
		return s
	})
}

// TestDefaultsChangeNoVerdict: filling in defaults neither makes nor mends a
// mistake, is done once and for all, and passes through JSON.
func TestDefaultsChangeNoVerdict(t *testing.T) {
	verdict := func(s Service) string {
		if err := s.Validate(); err != nil {
			return err.Error()
		}
		return ""
	}
	rapid.Check(t, func(t *rapid.T) {
		s := anyService().Draw(t, "spec")
		once := s.WithDefaults()
		if twice := once.WithDefaults(); !reflect.DeepEqual(once, twice) {
			t.Fatalf("WithDefaults is not idempotent:\n once %+v\ntwice %+v", once, twice)
		}
		if a, b := verdict(s), verdict(once); a != b {
			t.Fatalf("the verdict changed with the defaults:\nbefore %s\n after %s", a, b)
		}
		if a, b := s.Hash(), once.Hash(); a != b {
			t.Fatalf("the hash changed with the defaults: %s, %s", a, b)
		}
		if d := Diff(s, once); d != nil {
			t.Fatalf("the defaults count as changes: %v", d)
		}
		if verdict(s) != "" {
			return
		}
		data, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeService(data)
		if err != nil || !reflect.DeepEqual(back, once) {
			t.Fatalf("through JSON: %v\n got %+v\nwant %+v", err, back, once)
		}
	})
}

// TestHash changes each field of the template by itself.
func TestHash(t *testing.T) {
	base := valid()
	want := base.Hash()
	if len(want) != 24 || strings.Trim(want, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		t.Errorf("hash %q, want 24 characters of [a-z2-7]", want)
	}
	for range 20 { // maps are in another order each time
		if got := valid().Hash(); got != want {
			t.Fatalf("hash of an equal template: got %s, want %s", got, want)
		}
	}
	other := valid()
	other.Namespace, other.Name, other.Replicas, other.Labels = "x", "y", 9, nil
	other.Update = UpdatePolicy{}
	if got := other.Hash(); got != want {
		t.Errorf("got another hash, though nothing of the template changed")
	}
	seen := map[string]string{want: "nothing"}
	var paths []string
	walk(reflect.ValueOf(base.Template), "", "", func(path, _ string, v reflect.Value) {
		if v.Kind() == reflect.String || v.CanInt() || v.CanUint() || v.Kind() == reflect.Bool {
			paths = append(paths, path)
		}
	})
	if len(paths) < 100 {
		t.Fatalf("%d fields to change, want more: the test shows little", len(paths))
	}
	for _, path := range paths {
		s := base.WithDefaults() // a copy, in which no default follows what is changed
		s.Replicas = 1
		alter(t, reflect.ValueOf(&s.Template).Elem(), path)
		hash := s.Hash()
		if first, ok := seen[hash]; ok {
			t.Errorf("changing %s has the hash of changing %s", path, first)
		}
		seen[hash] = path
		if d := Diff(base, s); len(slices.DeleteFunc(d, func(c Change) bool { return c.Path == "replicas" })) == 0 {
			t.Errorf("changing %s is no difference", path)
		}
	}
}

// alter changes the value at path.
func alter(t *testing.T, template reflect.Value, path string) {
	t.Helper()
	done := false
	walk(template, "", "", func(at, _ string, v reflect.Value) {
		for _, k := range mapKeys(v) {
			if k.path(at) == path && v.MapIndex(k.key).Kind() == reflect.String {
				v.SetMapIndex(k.key, reflect.ValueOf(v.MapIndex(k.key).String()+"x"))
				done = true
			}
		}
		if at != path || !v.CanSet() {
			return
		}
		done = true
		switch {
		case v.Kind() == reflect.String:
			v.SetString(v.String() + "x")
		case v.Kind() == reflect.Bool:
			v.SetBool(!v.Bool())
		case v.CanInt():
			v.SetInt(v.Int() + 1)
		case v.CanUint():
			v.SetUint(v.Uint() ^ 1)
		default:
			done = false
		}
	})
	if !done && !strings.Contains(path, "hosts[") { // a list in a map cannot be set in place
		t.Fatalf("nothing to change at %s", path)
	}
	if !done {
		hosts := template.Addr().Interface().(*Template).DNS.Hosts
		hosts["db.example"][0] = "2001:db8::2"
	}
}

func mapKeys(v reflect.Value) []mapKey {
	if v.Kind() != reflect.Map {
		return nil
	}
	return sortedKeys(v)
}
