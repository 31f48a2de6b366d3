package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/leak"
	"github.com/orchestrate-go/orchestrate/local"
)

// narrate prints one line of progress with the time since the begin.
type narrate func(format string, args ...any)

func narrator() narrate {
	began := time.Now()
	if t, err := time.Parse(time.RFC3339Nano, os.Getenv(restarted)); err == nil {
		began = t
	} else {
		os.Setenv(begun, began.Format(time.RFC3339Nano))
	}
	return func(format string, args ...any) {
		fmt.Printf("%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
}

// Environment variables that outlive the program's restart.
const (
	begun     = "QUICKSTART_BEGUN"
	restarted = "QUICKSTART_RESTARTED"
	running   = "QUICKSTART_RUNNING"
	loadPID   = "QUICKSTART_LOAD"
)

func completed(ctx context.Context, fleet *local.Fleet, say narrate) error {
	result, err := fleet.Wait(ctx, "web")
	if err != nil {
		return err
	}
	say("  %v in %.1f s", result, result.Ended.Sub(result.Started).Seconds())
	return result.Err()
}

// addresses are the ways to the service: its virtual address and its published
// port.
func addresses(ctx context.Context, fleet *local.Fleet, port uint16) ([]string, error) {
	st, err := fleet.Get(ctx, "web")
	if err != nil {
		return nil, err
	}
	for _, a := range st.Addresses[orchestrate.DefaultNetwork] {
		if a.Is4() {
			return []string{net.JoinHostPort(a.String(), "80"), fmt.Sprintf("127.0.0.1:%d", port)}, nil
		}
	}
	return nil, fmt.Errorf("service web has no virtual IPv4 address: %v", st.Addresses)
}

// client opens a connection for each request, so that each is balanced.
var client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func get(ctx context.Context, address string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s", address, resp.Status)
	}
	return strings.TrimSpace(string(body)), err
}

// spread sends requests to each address and shows who answered.
func spread(ctx context.Context, addresses []string, replicas int, say narrate) error {
	for _, address := range addresses {
		counts := map[string]int{}
		for range 60 * replicas {
			answer, err := get(ctx, address)
			if err != nil {
				return err
			}
			counts[answer]++
		}
		say("  %d requests to %s:", 60*replicas, address)
		for _, who := range slices.Sorted(maps.Keys(counts)) {
			say("    %4d  %s", counts[who], who)
		}
		if len(counts) != replicas {
			return fmt.Errorf("%d replicas answered at %s, want %d", len(counts), address, replicas)
		}
	}
	return nil
}

func onlyVersion(ctx context.Context, addresses []string, version string, say narrate) error {
	for _, address := range addresses {
		for range 50 {
			answer, err := get(ctx, address)
			if err != nil {
				return err
			}
			if !strings.HasSuffix(answer, version) {
				return fmt.Errorf("%s answered at %s after the rollout, want %s", answer, address, version)
			}
		}
	}
	say("  every answer is of %s", version)
	return nil
}

// killOne kills a container's process as the kernel would, and waits for its
// successor.
func killOne(ctx context.Context, fleet *local.Fleet, say narrate) error {
	tasks, err := fleet.Tasks(ctx, "web")
	if err != nil {
		return err
	}
	victim := tasks[0]
	events, err := fleet.Watch(ctx)
	if err != nil {
		return err
	}
	say("killing process %d of task %s with SIGKILL", victim.Containers[0].PID, victim.ID)
	began := time.Now()
	if err := syscall.Kill(victim.Containers[0].PID, syscall.SIGKILL); err != nil {
		return err
	}
	for event := range events {
		if event.Task != victim.ID || event.State != orchestrate.Ready {
			continue
		}
		now, err := fleet.Tasks(ctx, "web")
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(now, func(t orchestrate.Task) bool { return t.ID == victim.ID && t.Restarts == victim.Restarts+1 }); i >= 0 {
			say("  replaced by process %d after %d ms", now[i].Containers[0].PID, time.Since(began).Milliseconds())
			return nil
		}
	}
	return fmt.Errorf("the killed container was not replaced: %w", context.Cause(ctx))
}

// processes are the service's containers with their process IDs.
func processes(ctx context.Context, fleet *local.Fleet) (map[string]int, error) {
	tasks, err := fleet.Tasks(ctx, "web")
	if err != nil {
		return nil, err
	}
	all := map[string]int{}
	for _, t := range tasks {
		for _, c := range t.Containers {
			all[c.ID] = c.PID
		}
	}
	return all, nil
}

// restart replaces this program by a fresh start of itself, without closing
// anything: a crash would do no less.
func restart(ctx context.Context, fleet *local.Fleet, say narrate) error {
	all, err := processes(ctx, fleet)
	if err != nil {
		return err
	}
	data, err := json.Marshal(all)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	say("restarting this program, as if it had crashed")
	os.Setenv(running, string(data))
	os.Setenv(restarted, os.Getenv(begun))
	return syscall.Exec(self, os.Args, os.Environ())
}

// adopted shows that the containers of before still run.
func adopted(ctx context.Context, fleet *local.Fleet, say narrate) error {
	var before map[string]int
	if err := json.Unmarshal([]byte(os.Getenv(running)), &before); err != nil {
		return err
	}
	if _, err := fleet.Wait(ctx, "web"); err != nil {
		return err
	}
	now, err := processes(ctx, fleet)
	if err != nil {
		return err
	}
	if !maps.Equal(before, now) {
		return fmt.Errorf("containers after the restart are %v, want those of before: %v", now, before)
	}
	for id, pid := range now {
		if err := syscall.Kill(pid, 0); err != nil {
			return fmt.Errorf("process %d of container %s: %w", pid, id, err)
		}
	}
	say("  adopted %d containers, none of them restarted", len(now))
	return nil
}

// marks are words in the names of all that this fleet has outside of its
// process; other fleets of the machine have others.
func marks(ctx context.Context, fleet *local.Fleet, dir string) ([]string, error) {
	words := []string{dir, fleet.ID()}
	networks, err := fleet.Networks(ctx)
	if err != nil {
		return nil, err
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, n := range networks {
			for _, subnet := range n.Subnets {
				prefix, err := netip.ParsePrefix(subnet)
				if err != nil {
					return nil, err
				}
				for _, a := range addrs {
					if p, err := netip.ParsePrefix(a.String()); err != nil || !prefix.Contains(p.Addr()) {
						continue
					}
					ports, err := os.ReadDir("/sys/class/net/" + i.Name + "/brif")
					if err != nil {
						return nil, err
					}
					words = append(words, i.Name)
					for _, port := range ports {
						words = append(words, port.Name())
					}
				}
			}
		}
	}
	all, err := processes(ctx, fleet)
	if err != nil {
		return nil, err
	}
	for _, pid := range all {
		// cgroups(7): HIERARCHY:CONTROLLERS:PATH, with the fleet's own folder
		// above the container's.
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			return nil, err
		}
		if _, path, ok := strings.Cut(string(data), ":/orchestrate/"); ok {
			words = append(words, strings.Split(path, "/")[0])
		}
		break
	}
	return words, nil
}

// nothingLeft looks for what the fleet could have left on the machine.
func nothingLeft(words []string, dir string, say narrate) error {
	now, err := leak.Look(dir)
	if err != nil {
		return err
	}
	var left []string
	for _, name := range now.Since(nil) {
		if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(name, w) }) {
			left = append(left, name)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("left on the machine: %q", left)
	}
	say("  no interface, nftables table, mount, cgroup, process or folder is left")
	return nil
}
