package scheduler

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParseConstraint(t *testing.T) {
	for text, want := range map[string]Constraint{
		"node.labels.zone == eu":           {Key: "node.labels.zone", Op: OpEqual, Values: []string{"eu"}},
		"node.labels.zone==eu":             {Key: "node.labels.zone", Op: OpEqual, Values: []string{"eu"}},
		" node.id  !=  n1 ":                {Key: "node.id", Op: OpNotEqual, Values: []string{"n1"}},
		"node.labels.zone in (eu, us)":     {Key: "node.labels.zone", Op: OpIn, Values: []string{"eu", "us"}},
		"node.labels.zone not in eu,us":    {Key: "node.labels.zone", Op: OpNotIn, Values: []string{"eu", "us"}},
		"node.labels.ssd exists":           {Key: "node.labels.ssd", Op: OpExists},
		"node.labels.ssd not exists":       {Key: "node.labels.ssd", Op: OpNotExists},
		"node.labels.cores >= 16":          {Key: "node.labels.cores", Op: OpGreaterEqual, Values: []string{"16"}},
		"node.labels.ver < semver 1.2":     {Key: "node.labels.ver", Op: OpLess, Values: []string{"1.2"}, Semver: true},
		"node.labels.word == semver":       {Key: "node.labels.word", Op: OpEqual, Values: []string{"semver"}},
		`node.hostname =~ "web-[0-9]+"`:    {Key: "node.hostname", Op: OpMatch, Values: []string{"web-[0-9]+"}},
		`node.labels.a == "x \"y\" é"`:     {Key: "node.labels.a", Op: OpEqual, Values: []string{`x "y" é`}},
		`node.labels.a == ""`:              {Key: "node.labels.a", Op: OpEqual, Values: []string{""}},
		"node.platform.os == linux":        {Key: "node.platform.os", Op: OpEqual, Values: []string{"linux"}},
		"node.labels.a.b/c-d == 10.0.0.1*": {Key: "node.labels.a.b/c-d", Op: OpEqual, Values: []string{"10.0.0.1*"}},
	} {
		got, err := ParseConstraint(text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %#v, %v; want %#v", text, got, err, want)
		}
		again, err := ParseConstraint(got.String())
		if err != nil || !reflect.DeepEqual(again, want) {
			t.Errorf("%q: its text %q reads back as %#v, %v", text, got.String(), again, err)
		}
	}
}

func TestParseConstraintErrors(t *testing.T) {
	for text, at := range map[string]int{
		"":                             0,
		"node.id":                      7,
		"node.id ~ x":                  8,
		"node.id ==":                   10,
		"node.id == a b":               13,
		"node.id in (a":                13,
		"node.id in ()":                12,
		"node.id not there":            12,
		`node.id == "a`:                11,
		"node.labels.ssd exists maybe": 23,
		"node.id == é":                 11,
	} {
		_, err := ParseConstraint(text)
		var parse *ParseError
		if !errors.As(err, &parse) || parse.Offset != at || !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, want a ParseError at byte %d", text, err, at)
		}
	}
	for _, text := range []string{
		"zone == eu", "node.labels. == x", "node.role == manager", "node.labels.n > many", "node.labels.n > NaN",
		"node.labels.v > semver x", "node.labels.v > semver 1.2.3.4", `node.id =~ "("`,
		`node.id =~ "a)|(b"`, `node.id =~ "` + strings.Repeat("(", 999) + "a" + strings.Repeat(")", 999) + `"`,
	} {
		var bad *InvalidError
		if _, err := ParseConstraint(text); !errors.As(err, &bad) {
			t.Errorf("%q: got %v, want an InvalidError", text, err)
		}
	}
}

func TestConstraintMatches(t *testing.T) {
	has := func(v string) *Node { return &Node{ID: "n", Labels: map[string]string{"k": v}} }
	for _, c := range []struct {
		text string
		node *Node
		want bool
	}{
		{"node.labels.k == 1", has("1"), true},
		{"node.labels.k == 1", has("01"), false},
		{"node.labels.k >= 1", has("01"), true},
		{"node.labels.k > 9", has("10"), true},
		{"node.labels.k > 9", has("ten"), false},
		{"node.labels.k < 9", has("NaN"), false},
		{"node.labels.k > 1", &Node{}, false},
		{"node.labels.k != 1", &Node{}, true},
		{"node.labels.k not in (1)", &Node{}, true},
		{"node.labels.k in (1)", &Node{}, false},
		{"node.labels.k exists", has(""), true},
		{"node.labels.k not exists", has(""), false},
		{`node.labels.k =~ "a.c"`, has("abc"), true},
		{`node.labels.k =~ "a.c"`, has("xabcx"), false}, // the whole value
		{`node.labels.k !~ "a.c"`, &Node{}, true},
		{`node.labels.k =~ "\\Qa.c"`, has("a.c"), true}, // what is quoted ends with the value
		{`node.labels.k =~ "\\Qa.c"`, has("abc"), false},
		{`node.labels.k =~ "(?i)ab|cd"`, has("CD"), true},
		{`node.labels.k =~ "ab|cd"`, has("abcd"), false},
		{"node.labels.k == semver 1.2", has("v1.2.0+build"), true},
		{"node.labels.k != semver 1.2", has("nonsense"), true},
		{"node.labels.k > semver 1.9", has("1.10"), true},
		{"node.labels.k < semver 1.0.0", has("1.0.0-rc.1"), true},
		{"node.labels.k > semver 1.0.0-alpha.9", has("1.0.0-alpha.10"), true},
		{"node.labels.k > semver 1.0.0-alpha.1", has("1.0.0-alpha.beta"), true},
		{"node.labels.k > semver 1.0.0-alpha", has("1.0.0-alpha.1"), true},
		{"node.labels.k > semver 99999999999999999999.0", has("100000000000000000000.0"), true},
		{"node.hostname exists", &Node{}, false},
		{"node.os == linux", &Node{Platform: Platform{OS: "linux"}}, true},
		{"node.arch in (amd64, arm64)", &Node{Platform: Platform{Arch: "arm64"}}, true},
	} {
		x := MustConstraint(c.text)
		if got := x.Matches(c.node); got != c.want {
			t.Errorf("%s on %v: got %v, want %v", c.text, c.node.Labels, got, c.want)
		}
	}
}

func TestConstraintJSON(t *testing.T) {
	want := Request{Service: "web", Constraints: []Constraint{MustConstraint("node.labels.ver >= semver 1.2")}}
	data, err := json.Marshal(want)
	if err != nil || string(data) != `{"service":"web","count":0,"constraints":["node.labels.ver \u003e= semver 1.2"]}` {
		t.Fatalf("got %s, %v", data, err)
	}
	var got Request
	if err := json.Unmarshal(data, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v, want %+v", got, err, want)
	}
	if err := json.Unmarshal([]byte(`{"constraints":["zone = eu"]}`), &got); !errors.Is(err, ErrInvalid) {
		t.Fatalf("got %v, want ErrInvalid", err)
	}
}

// FuzzParseConstraint: whatever is accepted is valid, is written as a text
// that means the same, and can be asked of a node.
func FuzzParseConstraint(f *testing.F) {
	for _, text := range []string{
		"node.labels.zone == eu", "node.labels.zone in (eu, us)", "node.labels.ssd not exists", "node.labels.v >= semver 1.2",
		`node.hostname =~ "web-[0-9]+"`, `node.id == "\x00"`, "node.id in a,b", "node.labels.a == semver", "node.labels.n < -1e9",
		`node.id =~ "\\Qweb"`,
	} {
		f.Add(text, "1.2")
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		c, err := ParseConstraint(text)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%q: %v is not typed", text, err)
			}
			return
		}
		again, err := ParseConstraint(c.String())
		if err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%q is written %q, which reads as %#v, %v; want %#v", text, c.String(), again, err, c)
		}
		n := &Node{ID: value, Hostname: value, Labels: map[string]string{"zone": value}}
		if c.Matches(n) != again.Matches(n) {
			t.Fatalf("%q and %q differ on %q", text, c.String(), value)
		}
	})
}
