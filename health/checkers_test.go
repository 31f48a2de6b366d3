package health_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/health/healthtest"
)

// serve runs an HTTP server and asserts at the end that probes left no
// connection open.
func serve(t *testing.T, h http.HandlerFunc) netip.AddrPort {
	t.Helper()
	var open atomic.Int32
	closed := make(chan struct{}, 1<<16)
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = nil
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
			closed <- struct{}{}
		}
	}
	s.Start()
	t.Cleanup(func() {
		for open.Load() > 0 { // ends by the test's timeout when one is never closed
			<-closed
		}
		s.Close()
	})
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

func at(a netip.AddrPort, change func(*health.HTTP)) healthtest.Case {
	h := &health.HTTP{Port: a.Port()}
	if change != nil {
		change(h)
	}
	return healthtest.Case{Target: health.Target{Address: a.Addr()}, Check: health.Check{HTTP: h}}
}

func path(p string) func(*health.HTTP) { return func(h *health.HTTP) { h.Path = p } }

// silent takes connections and says nothing.
func silent(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return netip.MustParseAddrPort(l.Addr().String())
}

// nobody is an address that refuses connections.
func nobody(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// raw answers each connection with these bytes, and closes it.
func raw(t *testing.T, answer []byte) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			http.ReadRequest(bufio.NewReader(conn))
			conn.Write(answer)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestHTTPConformance(t *testing.T) {
	plain := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bad" {
			http.Error(w, "broken", http.StatusServiceUnavailable)
		}
	})
	hanging := silent(t)
	healthtest.Run(t, healthtest.Harness{
		Checker: new(health.HTTPChecker), Healthy: at(plain, nil), Unhealthy: at(plain, path("/bad")), Hanging: at(hanging, nil),
	})
	t.Run("tls", func(t *testing.T) {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/bad" || r.TLS == nil {
				w.WriteHeader(500)
			}
		}))
		defer s.Close()
		secure := netip.MustParseAddrPort(s.Listener.Addr().String())
		tls := func(p string) func(*health.HTTP) {
			return func(h *health.HTTP) { h.TLS, h.Path = true, p }
		}
		healthtest.Run(t, healthtest.Harness{
			Checker: new(health.HTTPChecker), Healthy: at(secure, tls("/")), Unhealthy: at(secure, tls("/bad")), Hanging: at(hanging, tls("/")),
		})
	})
}

func TestTCPConformance(t *testing.T) {
	on := func(a netip.AddrPort) healthtest.Case {
		return healthtest.Case{Target: health.Target{Address: a.Addr()}, Check: health.Check{TCP: &health.TCP{Port: a.Port()}}}
	}
	healthtest.Run(t, healthtest.Harness{
		// A dial that hangs, as one to a host that drops packets does.
		Checker: &health.TCPChecker{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.HasSuffix(address, ":9") {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		}},
		Healthy: on(silent(t)), Unhealthy: on(nobody(t)), Hanging: on(netip.MustParseAddrPort("127.0.0.1:9")),
	})
}

func TestExecConformance(t *testing.T) {
	run := func(command string) healthtest.Case {
		return healthtest.Case{
			Target: health.Target{Exec: func(ctx context.Context, command []string) (int, []byte, error) {
				switch command[0] {
				case "false":
					return 1, []byte("it is broken\n"), nil
				case "sleep":
					<-ctx.Done()
					return 0, nil, ctx.Err()
				}
				return 0, nil, nil
			}},
			Check: health.Check{Exec: &health.Exec{Command: []string{command}}},
		}
	}
	healthtest.Run(t, healthtest.Harness{
		Checker: health.ExecChecker{}, Healthy: run("true"), Unhealthy: run("false"), Hanging: run("sleep"),
	})
	bad := run("false")
	var exit *health.ExitError
	if err := (health.ExecChecker{}).Check(t.Context(), bad.Target, bad.Check); !errors.As(err, &exit) || exit.Code != 1 || !strings.Contains(err.Error(), "it is broken") {
		t.Errorf("a command that exits with 1 = %v, want an *ExitError with the code and the output", err)
	}
	bad.Target.Exec = nil
	if err := (health.ExecChecker{}).Check(t.Context(), bad.Target, bad.Check); err == nil {
		t.Error("a target without exec is healthy, want an error")
	}
}

func TestHTTPAnswers(t *testing.T) {
	var redirected atomic.Bool
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, "/away", http.StatusFound)
		case "/away":
			redirected.Store(true)
			w.WriteHeader(500)
		case "/early":
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(204)
		case "/404":
			http.NotFound(w, r)
		case "/headers":
			if r.Host != "example.org" || r.Header.Get("X-Token") != "secret" || r.URL.RawQuery != "a=b" || r.Method != "GET" {
				http.Error(w, fmt.Sprint(r.Host, r.Header, r.URL), 400)
			}
		case "/big":
			w.Write(bytes.Repeat([]byte("x"), 10<<20))
		case "/big500":
			w.WriteHeader(500)
			w.Write(bytes.Repeat([]byte("x"), 10<<20))
		case "/stream":
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	})
	endless := bytes.Repeat([]byte("X-Filler: "+strings.Repeat("y", 1000)+"\r\n"), 200)
	for name, c := range map[string]struct {
		probe healthtest.Case
		want  string // in the reason; empty: healthy
	}{
		"a redirect is an answer":    {at(server, path("/redirect")), ""},
		"early hints come before it": {at(server, path("/early")), ""},
		"404":                        {at(server, path("/404")), `status 404 Not Found: "404 page not found"`},
		"404 that is asked for":      {at(server, func(h *health.HTTP) { h.Path, h.Status = "/404", []int{404} }), ""},
		"200 that is not asked for":  {at(server, func(h *health.HTTP) { h.Path, h.Status = "/", []int{204} }), "status 200"},
		"headers, host and query": {at(server, func(h *health.HTTP) {
			*h = health.HTTP{Port: h.Port, Path: "/headers?a=b", Host: "example.org", Headers: map[string]string{"x-token": "secret"}}
		}), ""},
		"host as a header": {at(server, func(h *health.HTTP) {
			*h = health.HTTP{Port: h.Port, Path: "/headers?a=b", Headers: map[string]string{"x-token": "secret", "host": "example.org"}}
		}), ""},
		"a big body is not read":       {at(server, path("/big")), ""},
		"a big body is quoted in part": {at(server, path("/big500")), "status 500"},
		"a stream is healthy at once":  {at(server, path("/stream")), ""},
		"nobody listens":               {at(nobody(t), nil), "connection refused"},
		"not HTTP":                     {at(raw(t, []byte("SSH-2.0-x\r\n")), nil), "malformed HTTP"},
		"nothing at all":               {at(raw(t, nil), nil), "EOF"},
		"a body that is cut off":       {at(raw(t, []byte("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")), nil), "did not come"},
		"headers without an end":       {at(raw(t, append([]byte("HTTP/1.1 200 OK\r\n"), endless...)), nil), "longer than"},
		"only informational answers":   {at(raw(t, bytes.Repeat([]byte("HTTP/1.1 103 Early Hints\r\n\r\n"), 10_000)), nil), "longer than"},
		"a target without address":     {healthtest.Case{Check: at(server, nil).Check}, "address"},
	} {
		t.Run(name, func(t *testing.T) {
			err := new(health.HTTPChecker).Check(t.Context(), c.probe.Target, c.probe.Check)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("%v, want healthy", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want a reason with %q", err, c.want)
			case err != nil && len(err.Error()) > 1000:
				t.Errorf("the reason has %d bytes, want a bounded one", len(err.Error()))
			}
		})
	}
	if redirected.Load() {
		t.Error("a redirect was followed")
	}
}
