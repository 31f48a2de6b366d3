package grpc_test

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/health/grpc"
)

// A monitor that knows checks of kind GRPC.
func ExampleChecker() {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	m := health.NewMonitor(health.Options{
		Checkers: map[string]health.Checker{health.KindGRPC: &grpc.Checker{}},
		Report:   func(r health.Result) { fmt.Println(r.Target, r.Status) },
	})
	m.Add(health.Target{ID: "api.1", Address: netip.MustParseAddr("10.1.0.2")}, health.Check{
		GRPC:     &health.GRPC{Port: 9000, Service: "shop.Orders"},
		Interval: time.Second,
	})
	fmt.Println(m.Run(ctx)) // blocks until ctx ends
}
