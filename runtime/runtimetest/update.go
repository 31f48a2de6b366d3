package runtimetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// updateCases are about the bounds of containers that run.
func updateCases() []testCase {
	return []testCase{
		{"update", func(e *env) error {
			updater, ok := e.rt.(runtime.Updater)
			if !ok {
				return errSkip
			}
			spec := e.spec("a", "print=runs", "ignore")
			spec.Resources = runtime.Resources{CPU: 500, CPUShares: 100, Memory: 64 << 20, MemoryRequest: 32 << 20, Pids: 50}
			if err := e.startSpec(spec); err != nil {
				return err
			}
			before, _, err := e.get("a")
			if err != nil {
				return err
			}
			for _, want := range []runtime.Resources{
				{CPU: 250, CPUShares: 300, Memory: 96 << 20, MemoryRequest: 16 << 20, Pids: 60},
				{CPU: 250, CPUShares: 300, Memory: 96 << 20, MemoryRequest: 16 << 20, Pids: 60}, // again
				{CPU: 1500, Memory: 48 << 20},
				{}, // lifts all of them
				{CPU: 700, CPUShares: 50, Memory: 64 << 20, MemoryRequest: 8 << 20, Pids: 70, CPUSet: "0"},
				{Memory: 32 << 20},
			} {
				if err := updater.Update(e.ctx, "a", want); err != nil {
					return fmt.Errorf("Update to %+v: %w", want, err)
				}
				e.bounds("a", want)
			}
			after, _, err := e.get("a")
			if err != nil {
				return err
			}
			if after.PID != before.PID || after.State != runtime.Running || !after.Started.Equal(before.Started) {
				e.errorf("after updates the container is %+v, want it as it was, %+v", after, before)
			}
			return nil
		}},
		{"update that cannot be", func(e *env) error {
			updater, ok := e.rt.(runtime.Updater)
			if !ok {
				return errSkip
			}
			if err := updater.Update(e.ctx, "none", runtime.Resources{}); !errors.Is(err, runtime.ErrNotFound) {
				e.errorf("of an unknown container: got %v, want ErrNotFound", err)
			}
			if err := e.start("ended", "exit=0"); err != nil {
				return err
			}
			if err := e.exits("ended", 0); err != nil {
				return err
			}
			if err := updater.Update(e.ctx, "ended", runtime.Resources{Memory: 64 << 20}); !errors.Is(err, runtime.ErrNotFound) {
				e.errorf("of a container that has exited: got %v, want ErrNotFound", err)
			}
			spec := e.spec("a", "ignore")
			spec.Resources.Memory = 64 << 20
			if err := e.startSpec(spec); err != nil {
				return err
			}
			var bad *runtime.SpecError
			if err := updater.Update(e.ctx, "a", runtime.Resources{Memory: 1, CPU: 100}); !errors.As(err, &bad) {
				e.errorf("to a limit in which no process runs: got %v, want a *SpecError", err)
			}
			e.bounds("a", spec.Resources)
			return nil
		}},
		{"update over a restart of the program", func(e *env) error {
			updater, ok := e.rt.(runtime.Updater)
			if !ok || e.h.Restart == nil {
				return errSkip
			}
			spec := e.spec("a", "ignore")
			spec.Resources.Memory = 64 << 20
			if err := e.startSpec(spec); err != nil {
				return err
			}
			want := runtime.Resources{Memory: 96 << 20}
			if err := updater.Update(e.ctx, "a", want); err != nil {
				return err
			}
			var err error
			if e.rt, _, err = e.h.Restart(e.ctx, e.rt); err != nil {
				return err
			}
			e.bounds("a", want)
			want.Memory = 48 << 20
			if err := e.rt.(runtime.Updater).Update(e.ctx, "a", want); err != nil {
				return fmt.Errorf("Update after it: %w", err)
			}
			e.bounds("a", want)
			return nil
		}},
		{"update below what is in use", func(e *env) error {
			updater, ok := e.rt.(runtime.Updater)
			if !ok || !e.h.System {
				return errSkip
			}
			spec := e.spec("a", "eat=40", "print=full", "ignore")
			spec.Resources = runtime.Resources{CPU: 500, Memory: 64 << 20, Pids: 50}
			if err := e.startSpec(spec); err != nil {
				return err
			}
			if err := e.ready("a"); err != nil {
				return err
			}
			var refused *runtime.ResourceError
			err := updater.Update(e.ctx, "a", runtime.Resources{CPU: 100, Memory: 16 << 20, Pids: 20})
			if !errors.As(err, &refused) || refused.ID != "a" || refused.Reason == "" {
				e.errorf("got %v, want a *ResourceError", err)
			}
			e.bounds("a", spec.Resources)
			if c, _, _ := e.get("a"); c.State != runtime.Running {
				e.errorf("the container is %s after an update that was refused: want it running", c.State)
			}
			return nil
		}},
	}
}

// bounds compares what a container may use, as far as it can be seen: memory
// in its stats, and on a kernel all of it in its cgroup.
func (e *env) bounds(id string, want runtime.Resources) {
	if stats, ok := e.rt.(runtime.StatsReader); ok {
		if s, err := stats.Stats(e.ctx, id); err != nil || s.MemoryLimit != want.Memory {
			e.errorf("its stats have the memory limit %d, %v; want %d", s.MemoryLimit, err, want.Memory)
		}
	}
	if !e.h.System {
		return
	}
	c, _, err := e.get(id)
	if err != nil {
		e.errorf("%w", err)
		return
	}
	for file, want := range cgroupFiles(want) {
		got, err := readCgroup(c.PID, file)
		if err != nil || !slices.Contains(want, got) {
			e.errorf("%s of its cgroup reads %q, %v; want one of %q", file, got, err, want)
		}
	}
}

// cgroupFiles is what the files of a cgroup read with the given bounds, in
// both versions (cgroup-v1/*.rst and cgroup-v2.rst of the kernel).
func cgroupFiles(r runtime.Resources) map[string][]string {
	text := func(n int64, none ...string) []string {
		if n == 0 {
			return none
		}
		return []string{fmt.Sprint(n)}
	}
	const v1None = "9223372036854771712"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		files := map[string][]string{
			"memory.max": text(r.Memory, "max"), "memory.low": text(r.MemoryRequest, "0"),
			"pids.max": text(r.Pids, "max"), "cpu.max": {"max 100000"},
		}
		if r.CPU > 0 {
			files["cpu.max"] = []string{fmt.Sprintf("%d 100000", r.CPU*100)}
		}
		return files
	}
	return map[string][]string{
		"memory.limit_in_bytes":       text(r.Memory, v1None),
		"memory.memsw.limit_in_bytes": text(r.Memory, v1None, ""),
		"memory.soft_limit_in_bytes":  text(r.MemoryRequest, v1None),
		"cpu.cfs_quota_us":            text(r.CPU*100, "-1"),
		"cpu.shares":                  text(r.CPUShares*1024/1000, "1024"),
		"pids.max":                    text(r.Pids, "max"),
	}
}

// readCgroup reads a file of the cgroup that a process is in. One that the
// kernel does not have, such as of swap, is empty.
func readCgroup(pid int, file string) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	controller, _, _ := strings.Cut(file, ".")
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3) // ID:CONTROLLERS:PATH, cgroups(7)
		if len(parts) != 3 {
			continue
		}
		dir := ""
		if parts[1] == "" {
			if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
				continue
			}
		} else if dir = controller; !slices.Contains(strings.Split(parts[1], ","), controller) {
			continue
		}
		got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", dir, parts[2], file))
		if errors.Is(err, os.ErrNotExist) {
			return "", nil
		}
		return strings.TrimSpace(string(got)), err
	}
	return "", fmt.Errorf("process %d is in no cgroup of controller %s", pid, controller)
}
