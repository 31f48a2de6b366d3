package health_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/health"
)

func TestValidate(t *testing.T) {
	http := func(change func(*health.HTTP)) health.Check {
		h := &health.HTTP{Port: 80}
		change(h)
		return health.Check{HTTP: h}
	}
	tcp := func(change func(*health.Check)) health.Check {
		c := health.Check{TCP: &health.TCP{Port: 80}}
		change(&c)
		return c
	}
	for name, c := range map[string]struct {
		check health.Check
		want  string // fields, joined by spaces
	}{
		"the least of http": {http(func(h *health.HTTP) {}), ""},
		"all of http": {http(func(h *health.HTTP) {
			*h = health.HTTP{80, "/a?b=c%20d", "h:1", map[string]string{"X-A": "b c"}, true, []int{204}}
		}), ""},
		"the least of tcp":    {tcp(func(*health.Check) {}), ""},
		"the least of grpc":   {health.Check{GRPC: &health.GRPC{Port: 1}}, ""},
		"the least of exec":   {health.Check{Exec: &health.Exec{Command: []string{"true"}}}, ""},
		"the least of custom": {health.Check{Custom: &health.Custom{Name: "x"}}, ""},
		"the limits": {tcp(func(c *health.Check) {
			c.Interval, c.Timeout, c.Delay = health.MinInterval, health.MaxDuration, health.MaxDuration
			c.Failures, c.Successes = health.MaxThreshold, 1
		}), ""},

		"nothing":              {health.Check{}, ""}, // its field is the check itself; see below
		"two kinds":            {health.Check{TCP: &health.TCP{Port: 1}, Exec: &health.Exec{Command: []string{"a"}}}, "exec"},
		"no http port":         {http(func(h *health.HTTP) { h.Port = 0 }), "http.port"},
		"no tcp port":          {health.Check{TCP: &health.TCP{}}, "tcp.port"},
		"no grpc port":         {health.Check{GRPC: &health.GRPC{}}, "grpc.port"},
		"grpc service bytes":   {health.Check{GRPC: &health.GRPC{Port: 1, Service: "\xff"}}, "grpc.service"},
		"relative path":        {http(func(h *health.HTTP) { h.Path = "ready" }), "http.path"},
		"path is a URL":        {http(func(h *health.HTTP) { h.Path = "http://x/" }), "http.path"},
		"path is another host": {http(func(h *health.HTTP) { h.Path = "//x/y" }), "http.path"},
		"path splits":          {http(func(h *health.HTTP) { h.Path = "/ HTTP/1.1\r\nX: y" }), "http.path"},
		"host splits":          {http(func(h *health.HTTP) { h.Host = "a\r\nX: y" }), "http.host"},
		"host with path":       {http(func(h *health.HTTP) { h.Host = "a/b" }), "http.host"},
		"header name":          {http(func(h *health.HTTP) { h.Headers = map[string]string{"a b": ""} }), "http.headers"},
		"header name empty":    {http(func(h *health.HTTP) { h.Headers = map[string]string{"": ""} }), "http.headers"},
		"header splits":        {http(func(h *health.HTTP) { h.Headers = map[string]string{"A": "b\r\nC: d"} }), `http.headers["A"]`},
		"status 100":           {http(func(h *health.HTTP) { h.Status = []int{200, 100} }), "http.status[1]"},
		"status 600":           {http(func(h *health.HTTP) { h.Status = []int{600} }), "http.status[0]"},
		"no command":           {health.Check{Exec: &health.Exec{}}, "exec.command"},
		"empty command":        {health.Check{Exec: &health.Exec{Command: []string{"", "a"}}}, "exec.command"},
		"NUL in command":       {health.Check{Exec: &health.Exec{Command: []string{"a", "b\x00"}}}, "exec.command[1]"},
		"no custom name":       {health.Check{Custom: &health.Custom{}}, "custom.name"},
		"a built-in name":      {health.Check{Custom: &health.Custom{Name: "grpc"}}, "custom.name"},
		"interval too short":   {tcp(func(c *health.Check) { c.Interval = health.MinInterval - 1 }), "interval"},
		"interval negative":    {tcp(func(c *health.Check) { c.Interval = -time.Second }), "interval"},
		"interval too long":    {tcp(func(c *health.Check) { c.Interval = health.MaxDuration + 1 }), "interval"},
		"timeout too short":    {tcp(func(c *health.Check) { c.Timeout = 1 }), "timeout"},
		"delay negative":       {tcp(func(c *health.Check) { c.Delay = -1 }), "delay"},
		"failures negative":    {tcp(func(c *health.Check) { c.Failures = -1 }), "failures"},
		"successes too many":   {tcp(func(c *health.Check) { c.Successes = health.MaxThreshold + 1 }), "successes"},
		"many at once":         {health.Check{HTTP: &health.HTTP{Path: "x"}, Interval: -1, Failures: -1}, "http.port http.path interval failures"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, e := range c.check.Validate() {
				if e.Reason == "" {
					t.Errorf("%s has no reason", e.Field)
				}
				got = append(got, e.Field)
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("mistakes in %q, want in %q", got, c.want)
			}
		})
	}
	if got := (health.Check{}).Validate(); len(got) != 1 || !strings.Contains(got[0].Reason, "exactly one") {
		t.Errorf("an empty check has the mistakes %v, want one that says what to set", got)
	}
}

func TestWithDefaults(t *testing.T) {
	given := &health.HTTP{Port: 80}
	got := health.Check{HTTP: given, Failures: 7}.WithDefaults()
	want := health.Check{
		HTTP: &health.HTTP{Port: 80, Path: "/"}, Interval: 10 * time.Second, Timeout: time.Second, Failures: 7, Successes: 1,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("WithDefaults = %+v, want %+v", got, want)
	}
	if given.Path != "" {
		t.Error("WithDefaults changed what the check points to")
	}
}

// Whatever is decoded is either refused or can be defaulted, stays valid, has a
// kind and is the same after another trip through JSON.
func FuzzCheck(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `{"http":{"port":80,"path":"/a?b","host":"x:1","headers":{"A":"b"},"tls":true,"status":[200]},"interval":1000000000}`,
		`{"tcp":{"port":65535},"timeout":-1}`, `{"exec":{"command":["a","b"]},"failures":99999999999}`,
		`{"custom":{"name":"http"}}`, `{"grpc":{"port":1,"service":"a"},"delay":9223372036854775807}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var c health.Check
		if json.Unmarshal(data, &c) != nil || len(c.Validate()) > 0 {
			return
		}
		d := c.WithDefaults()
		if mistakes := d.Validate(); len(mistakes) > 0 {
			t.Errorf("%s is valid, but with defaults it is not: %v", data, mistakes)
		}
		if d.Kind() == "" || d.Interval < health.MinInterval || d.Timeout <= 0 || d.Failures < 1 || d.Successes < 1 {
			t.Errorf("%s with defaults is %+v, which cannot be run", data, d)
		}
		out, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var again health.Check
		if err := json.Unmarshal(out, &again); err != nil || len(again.Validate()) > 0 {
			t.Errorf("%s encodes as %s, which is refused: %v", data, out, err)
		}
	})
}
