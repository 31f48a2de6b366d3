//go:build linux

// Package leak tells what a fleet has left on a machine: everything that the
// library makes outside of its own process, taken before and after.
package leak

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// Machine is what exists on a machine at one moment, as "kind: name".
type Machine map[string]bool

// Look takes stock of interfaces, nftables tables, mounts (network namespaces that
// are held are among them), container cgroups, the processes of shims, runcs and
// guards, the files that this process has open, and the library's own folders.
// Folders are further paths whose existence counts. Goroutines are for
// go.uber.org/goleak.
func Look(folders ...string) (Machine, error) {
	m := Machine{}
	for _, look := range []func(Machine) error{interfaces, tables, mounts, cgroups, processes, files} {
		if err := look(m); err != nil {
			return nil, err
		}
	}
	run, err := filepath.Glob("/run/orchestrate/*")
	if err != nil {
		return nil, err
	}
	for _, path := range append(run, folders...) {
		if _, err := os.Lstat(path); err == nil {
			m["path: "+path] = true
		}
	}
	return m, nil
}

// Since returns what m has and before had not, sorted.
func (m Machine) Since(before Machine) []string {
	var left []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if !before[name] {
			left = append(left, name)
		}
	}
	return left
}

// MarshalText and UnmarshalText let a Machine pass through an environment
// variable, to a later start of a program.
func (m Machine) MarshalText() ([]byte, error) {
	return json.Marshal(slices.Sorted(maps.Keys(m)))
}

// UnmarshalText reads what MarshalText wrote.
func (m *Machine) UnmarshalText(data []byte) error {
	var names []string
	if err := json.Unmarshal(data, &names); err != nil {
		return err
	}
	*m = Machine{}
	for _, n := range names {
		(*m)[n] = true
	}
	return nil
}

func interfaces(m Machine) error {
	// Those of our own network namespace: /sys/class/net has those of
	// whoever mounted /sys.
	list, err := net.Interfaces()
	for _, i := range list {
		m["interface: "+i.Name] = true
	}
	return err
}

func tables(m Machine) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	list, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, t := range list {
		m[fmt.Sprintf("nftables table: %d %s", t.Family, t.Name)] = true
	}
	return nil
}

func mounts(m Machine) error {
	// The thread's, and not the process's: a test may look from within a host.
	file, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		// proc_pid_mountinfo(5): the fifth field is the mount point.
		if fields := strings.Fields(lines.Text()); len(fields) > 5 {
			m["mount: "+fields[4]] = true
		}
	}
	return nil
}

func cgroups(m Machine) error {
	return filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // it ended while we looked
		}
		if err == nil && d.IsDir() && strings.Contains(path, "/orchestrate") {
			m["cgroup: "+path] = true
		}
		return err
	})
}

func processes(m Machine) error {
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	for _, path := range comms {
		comm, err := os.ReadFile(path)
		if err != nil {
			continue // it ended while we looked
		}
		name := strings.TrimSpace(string(comm))
		if !strings.HasPrefix(name, "containerd-shim") && name != "runc" && name != "sh" {
			continue
		}
		// One that has ended, and that its parent has not waited for yet,
		// has no command line any more.
		dir := filepath.Dir(path)
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(line) == 0 {
			continue
		}
		words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if name == "sh" {
			guard := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, "orchestrate-") })
			if guard < 0 {
				continue
			}
			words = words[guard:] // without its script
		}
		m["process: "+filepath.Base(dir)+" "+strings.Join(words, " ")] = true
	}
	return nil
}

// files are those with a path: sockets and pipes come and go with connections.
func files(m Machine) error {
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return err
	}
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "/proc/") || strings.HasPrefix(to, "/dev/") {
			continue
		}
		// containerd's content store tries whether files can be sealed, and leaves
		// the one that it tried it on to the garbage collector.
		if !strings.Contains(to, "/.fsverity-check-") {
			m["open file: "+to] = true
		}
	}
	return nil
}
