//go:build linux

package local

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cpuMeter counts the processor time of a benchmark and of all that it makes.
// Shims and what they run are not its children, so it is in a cgroup of its
// own that they inherit; what moves on to a container's cgroup is counted
// there. On a busy machine processor time says more than the clock.
type cpuMeter struct {
	mount string
	file  string // of a cgroup's folder
	own   string
	dirs  []string
}

// newCPUMeter begins to count. The cgroups are those that hold the containers'.
func newCPUMeter(b *testing.B, cgroups ...string) *cpuMeter {
	b.Helper()
	m := &cpuMeter{mount: "/sys/fs/cgroup/cpuacct", file: "cpuacct.usage"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		m.mount, m.file = "/sys/fs/cgroup", "cpu.stat"
	}
	home := filepath.Join(m.mount, m.home(b))
	m.own = filepath.Join(home, fmt.Sprint("orchestrate-bench-", os.Getpid()))
	if err := os.Mkdir(m.own, 0o755); err != nil {
		b.Fatal(err)
	}
	self := []byte(strconv.Itoa(os.Getpid()))
	b.Cleanup(func() {
		if err := os.WriteFile(filepath.Join(home, "cgroup.procs"), self, 0o600); err != nil {
			b.Error(err)
		}
		if err := os.Remove(m.own); err != nil {
			b.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(m.own, "cgroup.procs"), self, 0o600); err != nil {
		b.Fatal(err)
	}
	m.dirs = []string{m.own}
	for _, c := range cgroups {
		m.dirs = append(m.dirs, filepath.Join(m.mount, c))
	}
	return m
}

// home is the cgroup that this process is in (cgroups(7), /proc/pid/cgroup).
func (m *cpuMeter) home(b *testing.B) string {
	b.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && (m.file == "cpu.stat" && f[1] == "" || strings.Contains(f[1], "cpuacct")) {
			return f[2]
		}
	}
	b.Fatalf("no cgroup that counts processor time in %q", text)
	return ""
}

// now is the processor time so far. A cgroup counts what was in it, removed
// cgroups below it included.
func (m *cpuMeter) now(b *testing.B) (sum time.Duration) {
	b.Helper()
	for _, dir := range m.dirs {
		text, err := os.ReadFile(filepath.Join(dir, m.file))
		if os.IsNotExist(err) {
			continue // no container yet
		}
		if err != nil {
			b.Fatal(err)
		}
		lines := bufio.NewScanner(bytes.NewReader(text))
		lines.Scan()
		value, unit := lines.Text(), time.Nanosecond
		if v, ok := strings.CutPrefix(value, "usage_usec "); ok {
			value, unit = v, time.Microsecond
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(n) * unit
	}
	return sum
}
