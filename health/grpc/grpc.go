// Package grpc is the [health.Checker] of checks of kind GRPC, by the gRPC
// health checking protocol: grpc.health.v1.Health/Check must answer SERVING.
//
//	m := health.NewMonitor(health.Options{
//		Checkers: map[string]health.Checker{health.KindGRPC: &grpc.Checker{}},
//	})
//
// It is apart from package health since it brings google.golang.org/grpc.
package grpc

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/orchestrate-go/orchestrate/health"
)

// Checker runs checks of kind GRPC. The zero value is ready. Each probe is one
// call on a connection of its own, which is closed before Check returns.
// Certificates are not verified, and proxies of the environment are not used.
type Checker struct {
	Dial health.DialFunc // default: a [net.Dialer]
}

// ServingError is an answer other than SERVING.
type ServingError struct {
	Service string
	Status  string // such as "NOT_SERVING"
}

func (e *ServingError) Error() string {
	return fmt.Sprintf("gRPC service %q is %s, not SERVING", e.Service, e.Status)
}

// Check probes target by check.GRPC. An answer that is not SERVING is a
// [*ServingError].
func (c *Checker) Check(ctx context.Context, target health.Target, check health.Check) error {
	g := check.GRPC
	if g == nil {
		return &health.SpecError{Field: "grpc", Reason: "is not set; the gRPC checker runs checks of kind grpc"}
	}
	if !target.Address.IsValid() {
		return &health.SpecError{Field: "target.address", Reason: "is not set; a network probe needs the task's address"}
	}
	address := netip.AddrPortFrom(target.Address, g.Port).String()
	dial := c.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	creds := insecure.NewCredentials()
	if g.TLS {
		creds = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(dialCtx context.Context, _ string) (net.Conn, error) {
			// gRPC dials with a context of its own, which ends with the
			// connection; the probe's end closes that.
			return dial(dialCtx, "tcp", address)
		}),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithUserAgent("orchestrate-health/1"),
	)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", address, err)
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx,
		&grpc_health_v1.HealthCheckRequest{Service: g.Service})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return fmt.Errorf("%s does not implement grpc.health.v1.Health: %w", address, err)
	case status.Code(err) == codes.NotFound:
		return &ServingError{Service: g.Service, Status: "unknown to the server"}
	case err != nil:
		return fmt.Errorf("call grpc.health.v1.Health/Check at %s: %w", address, err)
	case answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
		return &ServingError{Service: g.Service, Status: answer.GetStatus().String()}
	}
	return nil
}
