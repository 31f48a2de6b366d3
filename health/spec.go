package health

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// The names under which a [Monitor] looks up the checkers of the built-in
// kinds of [Check]. Options.Checkers may replace them.
const (
	KindHTTP = "http"
	KindTCP  = "tcp"
	KindGRPC = "grpc"
	KindExec = "exec"
)

// The defaults that [Check.WithDefaults] fills in, and the limits that
// [Check.Validate] holds.
const (
	DefaultInterval  = 10 * time.Second
	DefaultTimeout   = time.Second
	DefaultFailures  = 3
	DefaultSuccesses = 1

	MinInterval  = 10 * time.Millisecond
	MinTimeout   = time.Millisecond
	MaxDuration  = 24 * time.Hour // of Interval, Timeout and Delay
	MaxThreshold = 1_000_000      // of Failures and Successes
)

// Kind is the name of the checker that runs c: one of [KindHTTP], [KindTCP],
// [KindGRPC] and [KindExec], or the name of a custom one. It is empty when c
// says none.
func (c Check) Kind() string {
	switch {
	case c.HTTP != nil:
		return KindHTTP
	case c.TCP != nil:
		return KindTCP
	case c.GRPC != nil:
		return KindGRPC
	case c.Exec != nil:
		return KindExec
	case c.Custom != nil:
		return c.Custom.Name
	}
	return ""
}

// WithDefaults returns c with every unset field that has a default set to it.
// What c points to is not changed.
func (c Check) WithDefaults() Check {
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Failures == 0 {
		c.Failures = DefaultFailures
	}
	if c.Successes == 0 {
		c.Successes = DefaultSuccesses
	}
	if c.HTTP != nil && c.HTTP.Path == "" {
		h := *c.HTTP
		h.Path = "/"
		c.HTTP = &h
	}
	return c
}

// Validate returns every mistake in c, in the order of its fields; none when c
// can be run. Unset fields that have a default are no mistake.
func (c Check) Validate() []*SpecError {
	var v mistakes
	v.kind(c)
	if c.HTTP != nil {
		v.http(c.HTTP)
	}
	if c.TCP != nil {
		v.port("tcp.port", c.TCP.Port)
	}
	if c.GRPC != nil {
		v.port("grpc.port", c.GRPC.Port)
		if !utf8.ValidString(c.GRPC.Service) {
			v.add("grpc.service", "is not valid UTF-8; give the full name of the gRPC service")
		}
	}
	if c.Exec != nil {
		v.exec(c.Exec)
	}
	if c.Custom != nil {
		v.custom(c.Custom)
	}
	v.duration("interval", c.Interval, MinInterval)
	v.duration("timeout", c.Timeout, MinTimeout)
	v.duration("delay", c.Delay, 0)
	v.threshold("failures", c.Failures)
	v.threshold("successes", c.Successes)
	return v
}

// mistakes collects what is wrong with a check.
type mistakes []*SpecError

func (v *mistakes) add(field, reason string, args ...any) {
	*v = append(*v, &SpecError{Field: field, Reason: fmt.Sprintf(reason, args...)})
}

func (v *mistakes) kind(c Check) {
	var set []string
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"http", c.HTTP != nil}, {"tcp", c.TCP != nil}, {"grpc", c.GRPC != nil},
		{"exec", c.Exec != nil}, {"custom", c.Custom != nil},
	} {
		if k.set {
			set = append(set, k.name)
		}
	}
	switch len(set) {
	case 0:
		v.add("", "says no kind of probe; set exactly one of http, tcp, grpc, exec and custom")
	case 1:
	default:
		v.add(set[1], "is a second kind beside %s; set exactly one of http, tcp, grpc, exec and custom", set[0])
	}
}

func (v *mistakes) http(h *HTTP) {
	v.port("http.port", h.Port)
	if h.Path != "" {
		if u, err := url.ParseRequestURI(h.Path); h.Path[0] != '/' || strings.HasPrefix(h.Path, "//") || err != nil || u.Host != "" {
			v.add("http.path", "%q is not the path of a request; it begins with one slash, and special characters in it are percent-encoded", h.Path)
		}
	}
	if strings.ContainsFunc(h.Host, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("/?#@\\", r) }) {
		v.add("http.host", "%q is not a host; give a name or address, with :port when needed", h.Host)
	}
	for _, name := range sortedKeys(h.Headers) {
		if !isToken(name) {
			v.add("http.headers", "%q is not the name of a header; use letters, digits and hyphens", name)
		}
		if value := h.Headers[name]; strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			v.add(fmt.Sprintf("http.headers[%q]", name), "has a control character; a header's value is one line of text")
		}
	}
	for i, s := range h.Status {
		if s < 200 || s > 599 {
			v.add(fmt.Sprintf("http.status[%d]", i), "%d is not the status of a final answer; it is from 200 to 599", s)
		}
	}
}

func (v *mistakes) exec(e *Exec) {
	if len(e.Command) == 0 || e.Command[0] == "" {
		v.add("exec.command", "is empty; name the program and its arguments")
	}
	for i, arg := range e.Command {
		if strings.ContainsRune(arg, 0) {
			v.add(fmt.Sprintf("exec.command[%d]", i), "has a NUL byte, which no argument can have")
		}
	}
}

func (v *mistakes) custom(c *Custom) {
	switch c.Name {
	case "":
		v.add("custom.name", "is empty; give the name under which the checker is registered")
	case KindHTTP, KindTCP, KindGRPC, KindExec:
		v.add("custom.name", "%q is the name of a built-in kind; set %s instead", c.Name, c.Name)
	}
}

func (v *mistakes) port(field string, port uint16) {
	if port == 0 {
		v.add(field, "is 0; give the port that the container listens on, from 1 to 65535")
	}
}

func (v *mistakes) duration(field string, d, least time.Duration) {
	switch {
	case d == 0: // the default
	case d < least:
		v.add(field, "%v is too short; at least %v", d, least)
	case d > MaxDuration:
		v.add(field, "%v is too long; at most %v", d, MaxDuration)
	}
}

func (v *mistakes) threshold(field string, n int) {
	if n < 0 || n > MaxThreshold {
		v.add(field, "%d is out of range; from 1 to %d", n, MaxThreshold)
	}
}

// isToken reports whether s is a token of RFC 9110 section 5.6.2, the form of
// a header's name.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
