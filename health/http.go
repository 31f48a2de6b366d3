package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds on what a probe reads from a server, which may be broken or hostile.
const (
	maxAnswer = 64 << 10 // bytes of status line, headers and body
	maxQuoted = 256      // bytes of the answer quoted in a reason
)

// A DialFunc connects to an address, as [net.Dialer.DialContext] does. One
// that dials from another network namespace or source address can be given to
// the checkers.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// HTTPChecker runs checks of kind HTTP. The zero value is ready.
//
// Each probe is one HTTP/1.1 GET on a connection of its own that is closed
// before Check returns: a probe must find out whether new connections are
// served, and nothing may stay open at rest. Redirects are not followed, since
// the redirect is already the process's answer and its goal may be another
// host. Proxies of the environment are not used. Of the answer at most 64 KiB
// are read, and a body of stated length up to that must arrive whole.
type HTTPChecker struct {
	Dial DialFunc // default: a [net.Dialer]
}

// StatusError is an HTTP answer that is not healthy.
type StatusError struct {
	Code int    // status
	Body string // its first bytes
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("status %d %s", e.Code, http.StatusText(e.Code))
	if e.Body != "" {
		s += fmt.Sprintf(": %q", e.Body)
	}
	return s
}

// Check probes target by check.HTTP. An answer that is not healthy is a
// [*StatusError].
func (c *HTTPChecker) Check(ctx context.Context, target Target, check Check) error {
	h := check.HTTP
	if h == nil {
		return &SpecError{Field: "http", Reason: "is not set; the HTTP checker runs checks of kind http"}
	}
	address, err := address(target, h.Port)
	if err != nil {
		return err
	}
	req, err := request(ctx, h, address)
	if err != nil {
		return err
	}
	raw, err := dial(ctx, c.Dial, address)
	if err != nil {
		return err
	}
	defer raw.Close()
	// The context ends the probe at whatever it waits for; the deadline in
	// the past makes reads and writes return, in the TLS handshake too.
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := raw
	if h.TLS {
		name, _, err := net.SplitHostPort(req.Host)
		if err != nil {
			name = req.Host
		}
		conn = tls.Client(raw, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	}
	return because(ctx, exchange(conn, req, h.Status))
}

func request(ctx context.Context, h *HTTP, address string) (*http.Request, error) {
	path := h.Path
	if path == "" {
		path = "/"
	}
	u, err := url.ParseRequestURI(path)
	if err != nil {
		return nil, &SpecError{Field: "http.path", Reason: err.Error()}
	}
	u.Scheme, u.Host = "http", address
	if h.TLS {
		u.Scheme = "https"
	}
	req := (&http.Request{Method: http.MethodGet, URL: u, Host: address, Header: http.Header{
		"User-Agent": {"orchestrate-health/1"}, "Accept": {"*/*"},
	}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Close: true}).WithContext(ctx)
	for name, value := range h.Headers {
		if strings.EqualFold(name, "Host") {
			req.Host = value
			continue
		}
		req.Header.Set(name, value)
	}
	if h.Host != "" {
		req.Host = h.Host
	}
	return req, nil
}

// exchange sends req on conn and judges the answer.
func exchange(conn net.Conn, req *http.Request, want []int) error {
	if err := req.Write(conn); err != nil {
		return fmt.Errorf("send the request: %w", err)
	}
	limited := &io.LimitedReader{R: conn, N: maxAnswer}
	r := bufio.NewReaderSize(limited, 2048)
	var resp *http.Response
	for {
		var err error
		if resp, err = http.ReadResponse(r, req); err != nil {
			if limited.N <= 0 {
				return fmt.Errorf("the answer's headers are longer than %d bytes", maxAnswer)
			}
			return fmt.Errorf("read the answer: %w", err)
		}
		// 1xx is informational, except 101, which ends HTTP on it.
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			break
		}
	}
	// The body is not closed, since that may read it to its end; the
	// connection is.
	if healthyStatus(resp.StatusCode, want) {
		// Taking a short body off the connection saves the server an error
		// in its log. A stream has no end to wait for.
		if resp.ContentLength > 0 && resp.ContentLength <= limited.N+int64(r.Buffered()) {
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				return fmt.Errorf("status %d, but the body of %d bytes did not come: %w", resp.StatusCode, resp.ContentLength, err)
			}
		}
		return nil
	}
	body := make([]byte, maxQuoted)
	n, _ := io.ReadFull(resp.Body, body) // what came is quoted, whatever stopped it
	return &StatusError{Code: resp.StatusCode, Body: strings.TrimSpace(string(body[:n]))}
}

func healthyStatus(code int, want []int) bool {
	if len(want) > 0 {
		return slices.Contains(want, code)
	}
	return code >= 200 && code <= 399
}

// address is where a probe of target's port connects to.
func address(target Target, port uint16) (string, error) {
	if !target.Address.IsValid() {
		return "", &SpecError{Field: "target.address", Reason: "is not set; a network probe needs the task's address"}
	}
	return netip.AddrPortFrom(target.Address, port).String(), nil
}

func dial(ctx context.Context, f DialFunc, address string) (net.Conn, error) {
	if f == nil {
		f = new(net.Dialer).DialContext
	}
	conn, err := f(ctx, "tcp", address)
	if err != nil {
		return nil, because(ctx, fmt.Errorf("connect to %s: %w", address, err))
	}
	return conn, nil
}

// because adds to err that the context ended, when that is why: "i/o timeout"
// alone would not say that it was the check's own timeout.
func because(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	var status *StatusError
	if errors.As(err, &status) {
		return err // it answered; that says more
	}
	return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
}

// quote is the first bytes of what a command printed, for a reason.
func quote(b []byte) string {
	if len(b) > maxQuoted {
		b = b[:maxQuoted]
	}
	return strconv.Quote(strings.TrimSpace(string(b)))
}
