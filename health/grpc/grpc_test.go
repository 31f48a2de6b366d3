package grpc_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptest"
	"net/netip"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/orchestrate-go/orchestrate/health"
	healthgrpc "github.com/orchestrate-go/orchestrate/health/grpc"
	"github.com/orchestrate-go/orchestrate/health/healthtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen serves on a free port until the test ends and returns where.
func listen(t *testing.T, serve func(net.Listener) (stop func())) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(serve(l))
	return netip.MustParseAddrPort(l.Addr().String())
}

func serveHealth(t *testing.T, opts ...grpc.ServerOption) netip.AddrPort {
	return listen(t, func(l net.Listener) func() {
		s := grpc.NewServer(opts...)
		h := grpchealth.NewServer()
		h.SetServingStatus("up", grpc_health_v1.HealthCheckResponse_SERVING)
		h.SetServingStatus("down", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
		grpc_health_v1.RegisterHealthServer(s, h)
		done := make(chan struct{})
		go func() { defer close(done); s.Serve(l) }()
		return func() { s.Stop(); <-done }
	})
}

// hang takes connections and says nothing on them.
func hang(t *testing.T) netip.AddrPort {
	return listen(t, func(l net.Listener) func() { return func() { l.Close() } })
}

func on(at netip.AddrPort, service string, tls bool) healthtest.Case {
	return healthtest.Case{
		Target: health.Target{Address: at.Addr()},
		Check:  health.Check{GRPC: &health.GRPC{Port: at.Port(), Service: service, TLS: tls}},
	}
}

func TestConformance(t *testing.T) {
	server := httptest.NewUnstartedServer(nil) // for its certificate
	server.StartTLS()
	cert := server.TLS.Certificates[0]
	server.Close()
	plain, dead := serveHealth(t), hang(t)
	secure := serveHealth(t, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}})))
	for name, c := range map[string]struct {
		at  netip.AddrPort
		tls bool
	}{"plain": {plain, false}, "tls": {secure, true}} {
		t.Run(name, func(t *testing.T) {
			healthtest.Run(t, healthtest.Harness{
				Checker: &healthgrpc.Checker{},
				Healthy: on(c.at, "up", c.tls), Unhealthy: on(c.at, "down", c.tls), Hanging: on(dead, "", c.tls),
			})
		})
	}
}

func TestAnswers(t *testing.T) {
	at := serveHealth(t)
	bare := listen(t, func(l net.Listener) func() {
		s := grpc.NewServer()
		done := make(chan struct{})
		go func() { defer close(done); s.Serve(l) }()
		return func() { s.Stop(); <-done }
	})
	closed := listen(t, func(l net.Listener) func() { l.Close(); return func() {} })
	var serving *healthgrpc.ServingError
	for name, c := range map[string]struct {
		probe healthtest.Case
		want  func(error) bool
	}{
		"the server as a whole":    {on(at, "", false), func(err error) bool { return err == nil }},
		"a service that serves":    {on(at, "up", false), func(err error) bool { return err == nil }},
		"one that does not":        {on(at, "down", false), func(err error) bool { return errors.As(err, &serving) && serving.Status == "NOT_SERVING" }},
		"an unknown one":           {on(at, "none", false), func(err error) bool { return errors.As(err, &serving) && serving.Service == "none" }},
		"no health service":        {on(bare, "", false), func(err error) bool { return err != nil && !errors.As(err, &serving) }},
		"TLS to a plain server":    {on(at, "up", true), func(err error) bool { return err != nil }},
		"nobody listens":           {on(closed, "", false), func(err error) bool { return err != nil && !errors.Is(err, context.DeadlineExceeded) }},
		"a target without address": {healthtest.Case{Check: on(at, "up", false).Check}, func(err error) bool { return err != nil }},
	} {
		serving = nil
		if err := (&healthgrpc.Checker{}).Check(t.Context(), c.probe.Target, c.probe.Check); !c.want(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
