package orchestrate

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

func TestDecodeService(t *testing.T) {
	got, err := DecodeService([]byte(`{
		"name": "web", "replicas": -1, "labels": null,
		"containers": [{
			"image": "web:1", "command": [], "env": {"A": "é"},
			"resources": {"memoryLimit": 67108864},
			"security": {"capDrop": ["ALL"], "readOnlyRoot": true},
			"ulimits": [{"name": "core", "soft": 0, "hard": 18446744073709551615}],
			"readiness": {"http": {"port": 80}, "interval": "1m30s", "timeout": 2000000000}
		}],
		"ports": [{"port": 80, "published": 8080}],
		"stopGrace": "30s", "drainDelay": "-1s",
		"update": {"order": "stop-first", "parallelism": 3, "maxUnavailable": "25%"},
		"budget": {"minAvailable": "80%"},
		"autoscale": {"max": 5, "metrics": [{"name": "cpu", "average": 0.5}], "down": {"window": "1m"}}
	}`))
	if err != nil {
		t.Fatal(err)
	}
	c := got.Containers[0]
	for _, tt := range []struct {
		field     string
		got, want any
	}{
		{"replicas", got.Replicas, None},
		{"env", c.Env, map[string]string{"A": "é"}},
		{"an empty list is none", c.Command, []string(nil)},
		{"security", c.Security, runtime.Security{CapDrop: []string{"ALL"}, ReadOnlyRoot: true}},
		{"ulimits", c.Ulimits, []runtime.Ulimit{{Name: "core", Hard: 1<<64 - 1}}},
		{"interval by text", c.Readiness.Interval, 90 * time.Second},
		{"timeout by number", c.Readiness.Timeout, 2 * time.Second},
		{"stopGrace", got.StopGrace, 30 * time.Second},
		{"drainDelay", got.DrainDelay, -time.Second},
		{"order", got.Update.Order, StopFirst},
		{"an amount by number", got.Update.Parallelism, Amount("3")},
		{"an amount by text", got.Update.MaxUnavailable, Amount("25%")},
		{"the budget", got.Budget, Budget{MinAvailable: "80%"}},
		{"a fraction", got.Autoscale.Metrics[0].Average, 0.5},
		{"a default of the autoscaler", got.Autoscale.Min, 1},
		{"a default", c.Name, "main"},
	} {
		if !reflect.DeepEqual(tt.got, tt.want) {
			t.Errorf("%s: got %#v, want %#v", tt.field, tt.got, tt.want)
		}
	}
}

func TestDecodeServiceRefuses(t *testing.T) {
	const rest = `"name":"web","containers":[{"image":"web:1"}]`
	for _, tt := range []struct {
		name, data string
		paths      string
		reason     string // part of the first
	}{
		{"nothing", ``, "", "unexpected end"},
		{"no object", `[]`, "", "is a list; give an object"},
		{"null", `null`, "", "is null"},
		{"text", `"web"`, "", "give an object"},
		{"cut off", "{\n  \"name\": ", "", "line 2"},
		{"syntax", "{\n  \"name\": web\n}", "", "line 2, column 11"},
		{"trailing data", `{` + rest + `} {}`, "", "after top-level value"},
		{"comment", `{` + rest + `} // x`, "", "after top-level value"},
		{"too large", `{` + rest + `}` + strings.Repeat(" ", MaxDocumentBytes), "", "at most 1048576"},
		{"too deep", strings.Repeat("[", 20000), "", "max depth"},
		{"deep in what is unknown", `{` + rest + `,"x":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`, "x", unknownField},
		{"not UTF-8", "{\"name\":\"\xff\"}", "", "UTF-8"},
		{"unknown field", `{` + rest + `,"replica":3}`, "replica", `did you mean "replicas"?`},
		{"unknown field with children", `{` + rest + `,"spec":{"a":[{"b":1}]},"stopGrace":"1h"}`, "spec", unknownField},
		{"unknown field inside", `{"name":"web","containers":[{"image":"a","ports":[80]}]}`, "containers[0].ports", unknownField},
		{"field in another case", `{"Name":"web","containers":[{"image":"web:1"}]}`, "name Name", "missing"},
		{"field twice", `{` + rest + `,"name":"api"}`, "name", "given twice"},
		{"field twice by two names", `{"name":"web","containers":[{"image":"a","security":{"privileged":true,"Privileged":false}}]}`, "containers[0].security.Privileged", "containers[0].security.Privileged: is "},
		{"key twice", `{"name":"web","containers":[{"image":"a","env":{"A":"1","A":"2"}}]}`, `containers[0].env["A"]`, "given twice"},
		{"number for text", `{"name":1,"containers":[{"image":"web:1"}]}`, "name", "is the number 1; give a text"},
		{"text for number", `{` + rest + `,"replicas":"3"}`, "replicas", `is the text "3"; give a whole number`},
		{"fraction", `{` + rest + `,"replicas":1.5}`, "replicas", "whole number"},
		{"number too large", `{` + rest + `,"replicas":99999999999999999999}`, "replicas", "whole number"},
		{"port too large", `{` + rest + `,"ports":[{"port":65536}]}`, "ports[0].port", "from 0 to 65535"},
		{"port negative", `{` + rest + `,"ports":[{"port":-1}]}`, "ports[0].port", "from 0 to 65535"},
		{"text for bool", `{` + rest + `,"hostNetwork":"yes"}`, "hostNetwork", "true or false"},
		{"bool for number", `{` + rest + `,"replicas":true}`, "replicas", "is true; give a whole number"},
		{"object for a list", `{"name":"web","containers":{"main":{"image":"a"}}}`, "containers", "is an object; give a list"},
		{"text for a list", `{"name":"web","containers":[{"image":"a","command":"run"}]}`, "containers[0].command", "give a list"},
		{"list for a map", `{"name":"web","containers":[{"image":"a","env":["A=1"]}]}`, "containers[0].env", "is a list; give an object"},
		{"null in a list", `{"name":"web","containers":[null]}`, "containers[0].image", "missing"},
		{"duration without a unit", `{` + rest + `,"stopGrace":"30"}`, "stopGrace", "is not a duration"},
		{"duration in seconds", `{` + rest + `,"stopGrace":30}`, "stopGrace", "a unit belongs to it"},
		{"duration as a fraction", `{` + rest + `,"stopGrace":1.5}`, "stopGrace", "duration such as"},
		{"amount as a fraction", `{` + rest + `,"update":{"parallelism":0.25}}`, "update.parallelism", `a share such as "25%"`},
		{"amount of another kind", `{` + rest + `,"update":{"maxSurge":true}}`, "update.maxSurge", `a share such as "25%"`},
		{"amount that says nothing", `{` + rest + `,"update":{"maxSurge":"many"}}`, "update.maxSurge", "a number of tasks"},
		{"form and content", `{"name":"Web","containers":[{"image":"A","enf":{}}],"replicas":"x"}`, "name replicas containers[0].image containers[0].enf", "DNS label"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := DecodeService([]byte(tt.data))
			var invalid *ValidationError
			if !errors.As(err, &invalid) {
				t.Fatalf("got %v, want a *ValidationError", err)
			}
			if !reflect.DeepEqual(s, Service{}) {
				t.Errorf("got %+v beside the error, want nothing that could be used", s)
			}
			var got []string
			for _, p := range invalid.Problems {
				got = append(got, p.Path)
			}
			want := splitPaths(tt.paths)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("paths:\n got %q\nwant %q\n%v", got, want, err)
			}
			if !strings.Contains(invalid.Problems[0].Error(), tt.reason) {
				t.Errorf("got %q, want %q in it", invalid.Problems[0], tt.reason)
			}
		})
	}
}

// FuzzDecodeService: no document makes it panic; what is accepted is valid,
// and writing and reading it again changes nothing, nor its hash.
func FuzzDecodeService(f *testing.F) {
	if data, err := json.Marshal(valid()); err == nil {
		f.Add(data)
	}
	for _, tt := range malformed {
		s := valid()
		tt.spoil(&s, &s.Containers[0])
		if data, err := json.Marshal(s); err == nil && len(data) < 8<<10 {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, again := decodesSoundly(t, data, DecodeService); s.Hash() != again.Hash() {
			t.Fatalf("the hash of %+v changes by writing and reading", s)
		}
	})
}

// decodesSoundly checks what holds of each decoder of specs: what it refuses it
// names, and what it takes is valid, and reads the same when it is written.
func decodesSoundly[T Object](t *testing.T, data []byte, decode func([]byte) (T, error)) (first, again T) {
	t.Helper()
	first, err := decode(data)
	if err != nil {
		var invalid *ValidationError
		if !errors.As(err, &invalid) || len(invalid.Problems) == 0 {
			t.Fatalf("got %#v, want a *ValidationError with problems", err)
		}
		_ = err.Error()
		return first, first
	}
	if err := first.Validate(); err != nil {
		t.Fatalf("accepted, but %v", err)
	}
	written, err := json.Marshal(first)
	if err != nil {
		t.Fatal(err)
	}
	again, err = decode(written)
	if err != nil {
		t.Fatalf("%s is written as\n%s\nwhich is refused: %v", data, written, err)
	}
	if !reflect.DeepEqual(first, again) {
		t.Fatalf("%s is read as\n%+v\nand again as\n%+v", data, first, again)
	}
	return first, again
}

func TestDiff(t *testing.T) {
	old := valid()
	if got := Diff(old, valid()); got != nil {
		t.Fatalf("between equal specs: got %v, want nothing", got)
	}
	next := valid()
	next.Replicas = 5
	c := &next.Containers[0]
	c.Image = "web:2"
	c.Command = []string{"run"}
	c.Env = map[string]string{"MODE": "dry", "NEW": "1"}
	c.Liveness = nil
	c.Mounts = c.Mounts[:2]
	c.Security.ReadOnlyRoot = false
	next.Containers = append([]Container{{Name: "extra", Image: "x"}}, next.Containers...)
	next.StopGrace = time.Minute
	next.Ports[2].Name = "dns"
	// The container that is inserted takes the first one's default name.
	old.Containers[0].Name, next.Containers[1].Name = "main", "main"
	var got []string
	for _, c := range Diff(old, next) {
		got = append(got, c.String())
	}
	want := []string{
		`replicas: 3 → 5`,
		`containers["extra"]: added {"name":"extra","image":"x",`,
		`containers["main"].image: "web:1" → "web:2"`,
		`containers["main"].command: added ["run"]`,
		`containers["main"].env["MODE"]: "live\nand kicking" → "dry"`,
		`containers["main"].env["NEW"]: added "1"`,
		`containers["main"].security.readOnlyRoot: true → false`,
		`containers["main"].mounts["/data/conf"]: removed {"target":"/data/conf","bind":"/srv/conf","readOnly":true}`,
		`containers["main"].liveness: removed {"exec":{"command":["/bin/alive"]},`,
		`ports["53/udp"].name: added "dns"`,
		`stopGrace: 10s → 1m0s`,
	}
	if len(got) != len(want) {
		t.Fatalf("got %d changes, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("change %d:\n got %s\nwant %s", i, got[i], want[i])
		}
	}
}
