package orchestrate

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/orchestrate-go/orchestrate/runtime"
)

func TestEveryMistakeAtOnce(t *testing.T) {
	s := valid()
	s.Name = "Web"
	s.Replicas = -7
	s.Init[0].Image = ""
	c := &s.Containers[0]
	c.Env["A=B"] = ""
	c.Mounts[1].Target = "tmp"
	c.Mounts[2].Volume = "data"
	c.Readiness.HTTP.Port = 0
	c.Readiness.HTTP.Path = "ready"
	s.Ports[1].Published = 0
	s.DNS.Servers[0] = "dns"
	s.StopGrace = -1
	s.Update.Order = "fast"
	err := s.Validate()
	var invalid *ValidationError
	if !errors.As(err, &invalid) {
		t.Fatalf("got %v, want a *ValidationError", err)
	}
	var got []string
	for _, p := range invalid.Problems {
		got = append(got, p.Path)
	}
	want := []string{ // in the order of the fields
		"name", "replicas", "init[0].image", `containers[0].env["A=B"]`, "containers[0].mounts[1].target",
		"containers[0].mounts[2].bind", "containers[0].readiness.http.port", "containers[0].readiness.http.path",
		"ports[1].hostIP", "dns.servers[0]", "stopGrace", "update.order",
	}
	if !slices.Equal(got, want) {
		t.Errorf("paths:\n got %q\nwant %q", got, want)
	}
	for range 20 {
		if again := s.Validate(); again.Error() != err.Error() {
			t.Fatalf("the same spec gave another error:\n%v\n%v", err, again)
		}
	}
	text := err.Error()
	if lines := strings.Split(text, "\n"); len(lines) != len(want)+1 || lines[0] != `service "default/Web" has 12 mistakes:` {
		t.Errorf("got\n%s\nwant a heading and a line for each mistake", text)
	}
	var problem Problem
	if !errors.As(err, &problem) || problem.Path != "name" || problem.Value != `"Web"` {
		t.Errorf("errors.As found %+v, want the first problem", problem)
	}
}

func TestErrorIsBounded(t *testing.T) {
	s := valid()
	for i := range 500 {
		s.Containers[0].Env[strings.Repeat("k", i)+"="] = ""
	}
	s.Name = strings.Repeat("x", 1<<20) // too large as a whole, too
	text := s.Validate().Error()
	if len(text) > 64<<10 || !strings.Contains(text, "and 402 more") {
		t.Errorf("%d bytes for 502 mistakes, want a hundred of them shortened:\n%.2000s", len(text), text)
	}
}

func TestImageReferences(t *testing.T) {
	sha := "sha256:" + strings.Repeat("0a", 32)
	for _, ref := range []string{
		"web", "web:1", "web:1.2.3-rc.1_x", "library/web", "a/b/c/d", "docker.io/library/web:latest",
		"localhost/web", "localhost:5000/web", "registry.example:443/a/b:t", "192.0.2.1:5000/web",
		"[2001:db8::1]:5000/web:1", "[::1]/web", "web@" + sha, "web:1@" + sha, "host.example/a.b/c_d/e__f/g-h/i---j@" + sha,
		"web@sha512:" + strings.Repeat("f", 128), "Registry.Example/web", "xn--n3h.example/web", "0/1:2", "web:" + strings.Repeat("t", 128),
	} {
		if mistake := imageMistake(ref); mistake != "" {
			t.Errorf("%q %s; want no mistake", ref, mistake)
		}
	}
	for _, ref := range []string{
		"", ":", "/", "@", "web:", "web@", "/web", "web/", "a//b", "Web", "a/Web", "web.", ".web", "-web", "web-", "_web",
		"a..b", "a.-b", "a___b", "a_-b", "web:-1", "web:.1", "web:a b", "web:1:2", "web:" + strings.Repeat("t", 129),
		"host.example:/web", "host.example:65536/web", "host.example:x/web", "host.example:+1/web", "-host.example/web", "host..example/web",
		"[::1/web", "[::1]x/web", "[::g]:1/web", "[127.0.0.1]/web", "[fe80::1%25eth0]/web", "user@host.example/web",
		"web@sha256:" + strings.Repeat("0A", 32), "web@sha256:" + strings.Repeat("0", 63), "web@sha1:" + strings.Repeat("0", 40),
		"web@" + sha + "@" + sha, "http://host.example/web", "wéb", "web\t", "a\\b", "../web", "a/../b", strings.Repeat("f", 64),
	} {
		if imageMistake(ref) == "" {
			t.Errorf("%q was accepted; want it refused", ref)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]runtime.Signal{
		"SIGTERM": 15, "TERM": 15, "sigterm": 15, "15": 15, "SIGHUP": 1, "KILL": 9, "SIGUSR1": 10, "SIGUSR2": 12,
		"CHLD": 17, "SIGWINCH": 28, "SYS": 31, "IOT": 6, "POLL": 29, "64": 64, "RTMIN": 34, "SIGRTMIN+3": 37,
		"SIGRTMAX-14": 50, "SIGRTMAX": 64,
	} {
		if got, err := ParseSignal(s); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "SIG", "0", "65", "-1", "+9", "9 ", "SIGFOO", "RTMIN+", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMAX-99", "0x9", "SIGSIGTERM", "RTMIN++3"} {
		if got, err := ParseSignal(s); err == nil {
			t.Errorf("%q: got %d, want an error", s, got)
		}
	}
}

func TestSeccompProfiles(t *testing.T) {
	good := `{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"architectures":["SCMP_ARCH_X86_64"],
		"flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[
		{"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
		{"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}`
	s := valid()
	s.Containers[0].Security.Seccomp = good
	if err := s.Validate(); err != nil {
		t.Errorf("got %v, want no mistake", err)
	}
	for bad, reason := range map[string]string{
		`[]`:                                   "give an object",
		`{"defaultAction":"SCMP_ACT_ERRNO"} x`: "after top-level value",
		`{"defaultAction":"SCMP_ACT_ERRNO","syscall":[]}`:                            `did you mean "syscalls"?`,
		`{"defaultAction":"SCMP_ACT_ERRNO","archMap":[]}`:                            "Docker's form",
		`{"defaultAction":"SCMP_ACT_ERRNO","architectures":["x86_64"]}`:              "SCMP_ARCH_",
		`{"defaultAction":"SCMP_ACT_ERRNO","flags":["LOG"]}`:                         "SECCOMP_FILTER_FLAG_",
		`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":[""],"action":""}]}`: "syscalls[0].names[0]",
	} {
		s.Containers[0].Security.Seccomp = bad
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: got %v, want %q in it", bad, err, reason)
		}
	}
}

func TestNetworks(t *testing.T) {
	for _, n := range []Network{
		{Name: "front"},
		{Name: "both", Subnets: []string{"10.1.0.0/16", "fd00:1::/64"}, MTU: 1450, Internal: true, Options: map[string]string{"vlan": "7"}},
		{Name: "small", Subnets: []string{"192.0.2.0/30"}, MTU: 576},
	} {
		if err := n.Validate(); err != nil {
			t.Errorf("%+v: got %v, want no mistake", n, err)
		}
	}
	for _, tt := range []struct {
		network Network
		paths   []string
	}{
		{Network{}, []string{"name"}},
		{Network{Name: "Front"}, []string{"name"}},
		{Network{Name: strings.Repeat("n", 33)}, []string{"name"}},
		{Network{Name: "n", Subnets: []string{"10.0.0.0"}}, []string{"subnets[0]"}},
		{Network{Name: "n", Subnets: []string{"10.0.0.1/24"}}, []string{"subnets[0]"}},
		{Network{Name: "n", Subnets: []string{"10.0.0.0/31"}}, []string{"subnets[0]"}},
		{Network{Name: "n", Subnets: []string{"0.0.0.0/0"}}, []string{"subnets[0]"}},
		{Network{Name: "n", Subnets: []string{"127.0.0.0/8"}}, []string{"subnets[0]"}},
		{Network{Name: "n", Subnets: []string{"224.0.0.0/4"}}, []string{"subnets[0]"}},
		{Network{Name: "n", Subnets: []string{"::ffff:10.0.0.0/112"}}, []string{"subnets[0]"}},
		{Network{Name: "n", Subnets: []string{"10.0.0.0/24", "10.0.1.0/24"}}, []string{"subnets[1]"}},
		{Network{Name: "n", Subnets: []string{"fd00::/64", "fd01::/64"}}, []string{"subnets[1]"}},
		{Network{Name: "n", MTU: 68}, []string{"mtu"}},
		{Network{Name: "n", MTU: 1000, Subnets: []string{"fd00::/64"}}, []string{"mtu"}},
		{Network{Name: "n", MTU: -1, Options: map[string]string{"": ""}}, []string{"mtu", `options[""]`}},
	} {
		err := tt.network.Validate()
		var invalid *ValidationError
		if !errors.As(err, &invalid) {
			t.Errorf("%+v: got %v, want a *ValidationError", tt.network, err)
			continue
		}
		var got []string
		for _, p := range invalid.Problems {
			got = append(got, p.Path)
		}
		if !slices.Equal(got, tt.paths) {
			t.Errorf("%+v: got %v, want %q", tt.network, err, tt.paths)
		}
	}
}

// TestRealSpecs reads specs such as people run: what they say in Compose or
// Kubernetes, said here.
func TestRealSpecs(t *testing.T) {
	files, err := filepath.Glob("testdata/specs/*.json")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %q, %v, want the specs", files, err)
	}
	hashes := map[string]string{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s, err := DecodeService(data)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if other, ok := hashes[s.Hash()]; ok {
			t.Errorf("%s has the hash of %s", file, other)
		}
		hashes[s.Hash()] = file
	}
}
