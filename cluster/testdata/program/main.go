// Program is what the containers of package cluster's tests run: a server on port
// 8080 that answers its hostname until SIGTERM. Its first argument is what else
// it does:
//
//	web     nothing
//	alone   while it runs it holds a lock on the file /witness/HOSTNAME: where
//	        another holds it, there are two of one slot, and that is written to
//	        /witness/twice
//	ledger  that too; and it keeps the lines that it gets by POST /add in /data/lines, on disk before
//	        it answers, and answers all of them to GET /lines
//
// Each answer has the hostname in its header Host-Name. GET /from answers the
// address that the request comes from.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(role string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, host) })
	mux.HandleFunc("GET /from", func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintln(w, host, from)
	})
	switch role {
	case "web":
	case "alone", "ledger":
		lock, err := witness(host)
		if err != nil {
			return err
		}
		defer lock.Close()
		if role == "ledger" {
			err = keep(mux)
		}
		if err != nil {
			return err
		}
	default:
		return fmt.Errorf("no role %q", role)
	}
	server := &http.Server{Addr: ":8080", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Host-Name", host)
		mux.ServeHTTP(w, r)
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

// witness takes the slot's lock.
func witness(host string) (*os.File, error) {
	lock, err := os.OpenFile("/witness/"+host, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = add("/witness/twice", host)
	}
	return lock, err
}

const lines = "/data/lines"

func keep(mux *http.ServeMux) error {
	var mu sync.Mutex
	mux.HandleFunc("POST /add", func(w http.ResponseWriter, r *http.Request) {
		line, err := io.ReadAll(io.LimitReader(r.Body, 1000))
		if err == nil {
			mu.Lock()
			err = add(lines, string(line))
			mu.Unlock()
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("GET /lines", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, lines) })
	file, err := os.OpenFile(lines, os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return file.Close()
}

// add returns when the line would survive a crash of the machine.
func add(path, line string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.WriteString(line + "\n"); err != nil {
		return err
	}
	return file.Sync()
}
