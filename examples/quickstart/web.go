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
func load(file string, addresses []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	// The program's restart keeps its process; when that is gone, so is the
	// one who would stop the load.
	parent := os.Getppid()
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
				if os.Getppid() != parent {
					stop()
					return
				}
				// Not bound to ctx: a request that has begun counts.
				_, err := get(context.Background(), addresses[i%len(addresses)])
				again := err != nil && errors.Is(err, syscall.ECONNRESET)
				if again {
					_, err = get(context.Background(), addresses[i%len(addresses)])
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
	if os.Getppid() != parent {
		return nil // nobody would read it
	}
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}

func tallyFile() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("quickstart-%d.json", os.Getpid()))
}

func startLoad(addresses []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, append([]string{"load", tallyFile()}, addresses...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for us
	if err := cmd.Start(); err != nil {
		return err
	}
	return os.Setenv(loadPID, strconv.Itoa(cmd.Process.Pid))
}

// endLoad ends the load, if it was started, whatever it saw.
func endLoad() {
	pid, err := strconv.Atoi(os.Getenv(loadPID))
	if err != nil {
		return
	}
	if syscall.Kill(pid, syscall.SIGTERM) == nil {
		syscall.Wait4(pid, nil, 0, nil)
	}
	os.Remove(tallyFile())
	os.Unsetenv(loadPID)
}

// stopLoad ends the load and fails if one of its requests did.
func stopLoad(say narrate) error {
	pid, err := strconv.Atoi(os.Getenv(loadPID))
	if err != nil {
		return fmt.Errorf("the load was not started: %w", err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop the load: %w", err)
	}
	// It is a child of this process, though of the program before.
	if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
		return fmt.Errorf("wait for the load: %w", err)
	}
	os.Unsetenv(loadPID)
	defer os.Remove(tallyFile())
	data, err := os.ReadFile(tallyFile())
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
