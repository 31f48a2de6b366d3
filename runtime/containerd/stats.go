//go:build linux

package containerd

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

var _ runtime.StatsReader = (*Runtime)(nil)

// Stats implements [runtime.StatsReader] from the container's cgroup, without
// asking its shim.
func (r *Runtime) Stats(ctx context.Context, id string) (runtime.Stats, error) {
	err := ctx.Err()
	var c *container
	if err == nil {
		c, err = r.container(id)
	}
	if err == nil && c.exited() {
		err = errNotRunning
	}
	if err != nil {
		return runtime.Stats{}, wrap("stats of container", id, err)
	}
	if r.cgroups.unified {
		return r.cgroups.statsV2(c.task()), nil
	}
	return r.cgroups.statsV1(c.task()), nil
}

// statsV1 follows Documentation/admin-guide/cgroup-v1 of the kernel.
func (t cgroupTree) statsV1(id string) runtime.Stats {
	file := func(controller, name string) string { return filepath.Join(t.dir(controller, id), name) }
	memory := readKeyed(file("memory", "memory.stat"))
	s := runtime.Stats{
		At:        time.Now(),
		CPU:       time.Duration(readNumber(file("cpuacct", "cpuacct.usage"))),
		Throttled: time.Duration(readKeyed(file("cpu", "cpu.stat"))["throttled_time"]),
		Memory:    max(readNumber(file("memory", "memory.usage_in_bytes"))-memory["total_inactive_file"], 0),
		Pids:      readNumber(file("pids", "pids.current")),
		OOMKills:  t.oomKills(id),
	}
	// Without a limit the file has the largest multiple of a page.
	if limit := readNumber(file("memory", "memory.limit_in_bytes")); limit < math.MaxInt64-(1<<20) {
		s.MemoryLimit = limit
	}
	// Lines of "8:0 Read 4096".
	text, _ := os.ReadFile(file("blkio", "blkio.throttle.io_service_bytes_recursive"))
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 {
			n, _ := strconv.ParseInt(f[2], 10, 64)
			switch f[1] {
			case "Read":
				s.ReadBytes += n
			case "Write":
				s.WriteBytes += n
			}
		}
	}
	return s
}

// statsV2 follows Documentation/admin-guide/cgroup-v2.rst of the kernel.
func (t cgroupTree) statsV2(id string) runtime.Stats {
	dir := t.dir("", id)
	file := func(name string) string { return filepath.Join(dir, name) }
	cpu := readKeyed(file("cpu.stat"))
	s := runtime.Stats{
		At:          time.Now(),
		CPU:         time.Duration(cpu["usage_usec"]) * time.Microsecond,
		Throttled:   time.Duration(cpu["throttled_usec"]) * time.Microsecond,
		Memory:      max(readNumber(file("memory.current"))-readKeyed(file("memory.stat"))["inactive_file"], 0),
		MemoryLimit: readNumber(file("memory.max")),
		Pids:        readNumber(file("pids.current")),
		OOMKills:    t.oomKills(id),
	}
	// Lines of "8:0 rbytes=4096 wbytes=0 …".
	text, _ := os.ReadFile(file("io.stat"))
	for field := range strings.FieldsSeq(string(text)) {
		key, value, _ := strings.Cut(field, "=")
		n, _ := strconv.ParseInt(value, 10, 64)
		switch key {
		case "rbytes":
			s.ReadBytes += n
		case "wbytes":
			s.WriteBytes += n
		}
	}
	return s
}
