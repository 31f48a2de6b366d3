//go:build linux

// Package machine is what an agent needs to know and have of the machine that it
// runs on, whatever fleet it is of: how large that is, who answers names there, how
// all that it made goes again, and the health checkers that a program has.
package machine

import (
	"fmt"
	"maps"
	"os"
	goruntime "runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/health"
	"github.com/orchestrate-go/orchestrate/health/grpc"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Capacity is all that the machine has: its cores, its memory, and the size of
// the filesystem that dir is on.
func Capacity(dir string) (scheduler.Resources, error) {
	r := scheduler.Resources{CPU: int64(goruntime.NumCPU()) * 1000}
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return r, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return r, fmt.Errorf("read /proc/meminfo: %w", err)
			}
			r.Memory = kib << 10
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return r, fmt.Errorf("size of the filesystem of %s: %w", dir, err)
	}
	r.Disk = int64(fs.Blocks) * fs.Bsize
	return r, nil
}

// Checkers adds the checker that the core does not have to the application's.
func Checkers(own map[string]health.Checker) map[string]health.Checker {
	all := map[string]health.Checker{health.KindGRPC: new(grpc.Checker)}
	maps.Copy(all, own)
	return all
}
