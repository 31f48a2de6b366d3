//go:build linux

// Cluster runs a fleet of six machines on this one and lets it lose two of them:
// three control planes, which are members of etcd, and three nodes, each a process
// in a host of package clustertest with an address, mounts and containers of its
// own. A service is deployed over all nodes; under load, the control plane that
// leads is killed, and then a node's link is cut and healed. It prints when what
// happened, and ends with 0 only if everything held that it says.
//
// It needs root, containerd-shim-runc-v2 and runc, in the folder that
// ORCHESTRATE_BIN names or on PATH. The program is the machines', and the image
// of the containers too, so a plain "go build" needs CGO_ENABLED=0. When it was
// killed, its next start removes what it left.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	containerdlog "github.com/containerd/log"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	role := ""
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	switch role {
	case "serve":
		err = serve(ctx)
	case "control", "agent":
		err = machine(ctx, role, os.Args[2])
	default:
		verbose := flag.Bool("v", false, "print what the machines say, when something fails")
		flag.Parse()
		err = demo(ctx, *verbose)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// serve is what the containers run: a web server that says who it is.
func serve(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	server := &http.Server{Addr: ":8080", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, host, os.Getenv("VERSION"))
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return server.Shutdown(context.Background())
	}
}

// quiet keeps containerd's packages, which log by a logger of the process, to
// errors.
func quiet() error { return containerdlog.SetLevel("error") }

var errNotHeld = errors.New("did not hold")
