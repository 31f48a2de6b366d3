package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// serve is what the containers run: a web server that says who it is, and ends
// gracefully on SIGTERM.
func serve() error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthy", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, host, os.Getenv("VERSION"))
	})
	server := &http.Server{Addr: ":8080", Handler: mux}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return server.Shutdown(context.Background())
	}
}

// tally is what the load saw.
type tally struct {
	Requests int
	// Retried requests were cut off in the middle: the process that answered
	// them was killed. A GET may be sent again, and was, once.
	Retried int
	Failed  []string
}

// load sends requests to the addresses from a process of its own, so that they
// go on while the program restarts, and writes its tally to a file at SIGTERM.
// When the program dies, the load ends too and leaves no file.
func load(file string, addresses []string) error {
	alive, orphaned := context.WithCancel(context.Background())
	defer orphaned()
	// The program's restart is an exec and keeps its process, so another
	// parent means that nobody is left to stop the load.
	parent := os.Getppid()
	go func() {
		for pace := time.Tick(50 * time.Millisecond); alive.Err() == nil; <-pace {
			if os.Getppid() != parent {
				orphaned()
			}
		}
	}()
	ctx, stop := signal.NotifyContext(alive, syscall.SIGTERM)
	defer stop()
	var mu sync.Mutex
	var t tally
	var wg sync.WaitGroup
	for i := range 2 * len(addresses) {
		wg.Go(func() {
			pace := time.NewTicker(10 * time.Millisecond)
			defer pace.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-pace.C:
				}
				// Not bound to ctx: a request that has begun counts.
				_, err := get(alive, addresses[i%len(addresses)])
				again := err != nil && errors.Is(err, syscall.ECONNRESET)
				if again {
					_, err = get(alive, addresses[i%len(addresses)])
				}
				mu.Lock()
				t.Requests++
				if again {
					t.Retried++
				}
				if err != nil {
					t.Failed = append(t.Failed, fmt.Sprintf("%s: %v", time.Now().Format("15:04:05.000"), err))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if alive.Err() != nil {
		return nil // nobody would read the tally
	}
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return err
	}
	if os.Getppid() != parent {
		return os.Remove(file)
	}
	return nil
}

// tallyFile is beside the fleet's folder, which is gone when the fleet is.
func tallyFile(dir string) string { return filepath.Clean(dir) + ".load.json" }

func startLoad(dir string, addresses []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, append([]string{"load", tallyFile(dir)}, addresses...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for us
	if err := cmd.Start(); err != nil {
		return err
	}
	return os.Setenv(loadPID, strconv.Itoa(cmd.Process.Pid))
}

// endLoad ends the load, if it runs, and waits for its end. What it saw is
// lost.
func endLoad(dir string) error {
	if os.Getenv(loadPID) == "" {
		return nil
	}
	err := waitLoad()
	if gone := os.Remove(tallyFile(dir)); !errors.Is(gone, os.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}

// waitLoad asks the load to end and waits until it has.
func waitLoad() error {
	pid, err := strconv.Atoi(os.Getenv(loadPID))
	if err != nil {
		return fmt.Errorf("the load was not started: %w", err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop the load: %w", err)
	}
	// It is a child of this process, though of the program before.
	for err = syscall.EINTR; err == syscall.EINTR; {
		_, err = syscall.Wait4(pid, nil, 0, nil)
	}
	if err != nil {
		return fmt.Errorf("wait for the load: %w", err)
	}
	return os.Unsetenv(loadPID)
}

// stopLoad ends the load and fails if one of its requests did.
func stopLoad(dir string, say narrate) error {
	if err := waitLoad(); err != nil {
		return err
	}
	defer os.Remove(tallyFile(dir))
	data, err := os.ReadFile(tallyFile(dir))
	if err != nil {
		return err
	}
	var t tally
	if err := json.Unmarshal(data, &t); err != nil {
		return err
	}
	say("load: %d requests through kill, scaling, rollout and restart; %d failed, %d were cut off by the kill and sent again", t.Requests, len(t.Failed), t.Retried)
	if len(t.Failed) > 0 {
		return fmt.Errorf("failed requests: %q", t.Failed)
	}
	return nil
}
