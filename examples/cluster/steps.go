//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// deploy brings the service up, and every node answers for every task.
func (d *demonstration) deploy(ctx context.Context) error {
	if err := d.rollOut(ctx, "1"); err != nil {
		return err
	}
	on, _ := d.serving(ctx)
	if !slices.Equal(on, nodes) {
		return fmt.Errorf("a task on each of %v: %w; they are on %v", nodes, errNotHeld, on)
	}
	for _, n := range nodes {
		seen := map[string]bool{}
		err := d.until(ctx, 10*time.Second, n+" reaches all three tasks", func() (bool, error) {
			who, err := d.get(n)
			if err == nil {
				seen[who] = true
			}
			return len(seen) == 3, nil
		})
		if err != nil {
			return err
		}
	}
	d.say("each node answers on port %d by all three tasks, over the overlay network", port)
	return nil
}

func (d *demonstration) rollOut(ctx context.Context, version string) error {
	if err := d.fleet.Apply(ctx, d.web(version)); err != nil {
		return err
	}
	result, err := d.fleet.Wait(ctx, "web")
	if err == nil {
		err = result.Err()
	}
	if err == nil {
		d.say("version %s of web is rolled out: %v", version, result)
	}
	return err
}

// killLeader kills the control plane that leads. No request fails for it; another
// leads in time, and rolls out what was applied while nobody did.
func (d *demonstration) killLeader(ctx context.Context) error {
	var old string
	if err := d.until(ctx, 20*time.Second, "somebody leads", func() (bool, error) {
		old = d.leader(ctx)
		return old != "", nil
	}); err != nil {
		return err
	}
	load := d.load(nodes)
	defer load.stop()
	d.say("killing %s, which leads, under load", old)
	killed := time.Now()
	if err := d.machines.Host(old).Process("machine").Kill(); err != nil {
		return err
	}
	next := ""
	err := d.until(ctx, leaderTTL+time.Second, "another leads", func() (bool, error) {
		next = d.leader(ctx)
		return next != "" && next != old, nil
	})
	if err != nil {
		return err
	}
	d.say("%s leads after %.1f s", next, time.Since(killed).Seconds())
	if err := d.rollOut(ctx, "2"); err != nil {
		return err
	}
	if err := d.start(old); err != nil {
		return err
	}
	if err := d.ready(ctx, old); err != nil {
		return err
	}
	asked, failed := load.stop()
	if len(failed) > 0 {
		return fmt.Errorf("no request fails: %w; %d of %d did, such as: %w", errNotHeld, len(failed), asked, failed[0].err)
	}
	d.say("%s is back; of %d requests none failed", old, asked)
	return nil
}

// cutNode cuts a node's link. Traffic leaves it when its lease has ended, its task
// is replaced, and when the link is healed only the replacement is left.
func (d *demonstration) cutNode(ctx context.Context) error {
	const lost = "n2"
	load := d.load([]string{"n1", "n3"})
	defer load.stop()
	d.say("cutting the link of %s under load", lost)
	cut := time.Now()
	if err := d.machines.Host(lost).Cut(); err != nil {
		return err
	}
	err := d.until(ctx, nodeTTL+lostAfter+2*time.Second, "its task is replaced", func() (bool, error) {
		on, _ := d.serving(ctx)
		return len(on) == 3 && !slices.Contains(on, lost), nil
	})
	if err != nil {
		return err
	}
	d.say("its task is replaced after %.1f s", time.Since(cut).Seconds())
	asked, failed := load.stop()
	last := time.Duration(0)
	for _, f := range failed {
		last = max(last, f.began.Sub(cut))
	}
	if last > nodeTTL+time.Second {
		return fmt.Errorf("traffic leaves the node within %v: %w; a request failed %v after the cut: %w", nodeTTL+time.Second, errNotHeld, last, failed[len(failed)-1].err)
	}
	d.say("of %d requests through the other nodes %d failed, none later than %.1f s after the cut", asked, len(failed), last.Seconds())

	d.say("healing the link of %s", lost)
	if err := d.machines.Host(lost).Heal(); err != nil {
		return err
	}
	healed := time.Now()
	err = d.until(ctx, 30*time.Second, "what was left there ends", func() (bool, error) {
		on, all := d.serving(ctx)
		if all != 3 || len(on) != 3 {
			return false, nil
		}
		_, err := d.get(lost)
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	d.say("%s answers again, and what was left there has ended, after %.1f s", lost, time.Since(healed).Seconds())
	return nil
}

// get asks a node by a connection of its own, as a new client would.
func (d *demonstration) get(node string) (string, error) {
	resp, err := client.Get("http://" + netip.AddrPortFrom(d.machines.Host(node).IPv4, port).String())
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(text)), err
}

var client = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// load asks nodes until it is stopped.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex // guards what follows
	asked  int
	failed []failure
}

type failure struct {
	began time.Time
	err   error
}

func (d *demonstration) load(names []string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	l.wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			l.wg.Go(func() {
				began := time.Now()
				_, err := d.get(names[i%len(names)])
				l.mu.Lock()
				defer l.mu.Unlock()
				l.asked++
				if err != nil {
					l.failed = append(l.failed, failure{began, err})
				}
			})
		}
	})
	return l
}

func (l *load) stop() (asked int, failed []failure) {
	l.cancel()
	l.wg.Wait()
	return l.asked, l.failed
}
