//go:build linux

package local

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

// steadyRate is how many requests a second there are while a service changes.
const steadyRate = 500

// steady is a load that does not slow down with those who serve it: each
// request has a time at which it is due, whatever became of those before.
type steady struct {
	addresses []string
	fresh     *http.Client // a connection for each request
	kept      *http.Client // connections that last
	began     time.Time
	quit      chan struct{}
	done      sync.WaitGroup

	sent   atomic.Int64
	failed atomic.Int64
	mu     sync.Mutex // guards errs
	errs   []string   // the first few
}

func startSteady(addresses []string) *steady {
	l := &steady{
		addresses: addresses, quit: make(chan struct{}), began: time.Now(),
		fresh: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}},
		kept:  &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 16}},
	}
	l.done.Go(func() {
		timer := time.NewTimer(0)
		defer timer.Stop()
		for n := 0; ; n++ {
			timer.Reset(time.Until(l.began.Add(time.Duration(n) * time.Second / steadyRate)))
			select {
			case <-l.quit:
				return
			case <-timer.C:
			}
			l.done.Go(func() { l.request(n) })
		}
	})
	return l
}

// request sends the n-th request. Every tenth is on a connection that lasts.
func (l *steady) request(n int) {
	client := l.fresh
	if n%10 == 0 {
		client = l.kept
	}
	address := l.addresses[n/10%len(l.addresses)]
	err := func() error {
		resp, err := client.Get("http://" + address + "/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %s: %s", resp.Status, body)
		}
		return err
	}()
	l.sent.Add(1)
	if err == nil {
		return
	}
	l.failed.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.errs) < 10 {
		l.errs = append(l.errs, fmt.Sprintf("%s, request %d to %s: %v", time.Now().Format(time.StampMilli), n, address, err))
	}
}

// stop ends the load and returns the number of requests and their rate.
func (l *steady) stop() (sent int64, rate float64) {
	close(l.quit)
	l.done.Wait()
	l.kept.CloseIdleConnections()
	return l.sent.Load(), float64(l.sent.Load()) / time.Since(l.began).Seconds()
}

// Not one request fails, and none is sent twice, while a service that is well is
// changed in every way there is: rolling updates, a canary, a second set in place
// of the first, a drain of one of two nodes, a rollback.
func TestSteadyLoad(t *testing.T) {
	f := openFleet(t, WithNode("a", nil), WithNodes("b"))
	s := service("web", 4)
	s.Ports[0].Published = 8081
	s.DrainDelay = 0 // the default
	s.Update.Parallelism = "50%"
	up(t, f, s)
	addresses := []string{"127.0.0.1:8081", at(hostIPv4.Addr(), 8081), at(hostIPv6.Addr(), 8081)}
	for _, a := range virtual(t, f, "web") {
		addresses = append(addresses, at(a, 80))
	}
	load := startSteady(addresses)
	step := func(what string, do func() error) {
		t.Helper()
		before, began := load.failed.Load(), time.Now()
		if err := do(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		completed(t, f, "web")
		t.Logf("%s: %v, %d requests failed", what, time.Since(began).Round(time.Millisecond), load.failed.Load()-before)
	}
	version := func(n int) orchestrate.Service {
		s := s
		s.Containers = []orchestrate.Container{s.Containers[0]}
		s.Containers[0].Env = map[string]string{"VERSION": strconv.Itoa(n)}
		return s
	}
	for n := range 10 {
		step(fmt.Sprintf("rolling update %d", n+1), func() error { return f.Apply(t.Context(), version(n)) })
	}
	canary := version(10)
	canary.Update.Strategy = orchestrate.CanaryUpdate
	canary.Update.Canary.Bake = 300 * time.Millisecond
	step("canary", func() error { return f.Apply(t.Context(), canary) })
	blueGreen := version(11)
	blueGreen.Update.Strategy = orchestrate.BlueGreenUpdate
	blueGreen.Update.BlueGreen.Bake = 300 * time.Millisecond
	step("blue/green", func() error { return f.Apply(t.Context(), blueGreen) })
	step("drain", func() error { return f.Drain(t.Context(), "b") })
	if got := perNode(t, f, "web"); got["a"] != 4 {
		t.Errorf("tasks by node after the drain of b: got %v, want all 4 on a", got)
	}
	step("uncordon", func() error { return f.Uncordon(t.Context(), "b") })
	step("rollback", func() error { return f.Rollback(t.Context(), "web", 0) })
	sent, rate := load.stop()
	t.Logf("%d requests, %.0f a second, %d failed", sent, rate, load.failed.Load())
	if load.failed.Load() > 0 {
		t.Errorf("%d of %d requests failed, want none; the first: %q", load.failed.Load(), sent, load.errs)
	}
}
