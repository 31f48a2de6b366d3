//go:build linux

package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// onlineCPUs lists the machine's processors in the list format of cpuset(7).
const onlineCPUs = "/sys/devices/system/cpu/online"

// cpus returns the processors that containers can be given: those of the cgroup
// that theirs are in, or all of the machine's where there are no cpusets.
func (t cgroupTree) cpus() (string, error) {
	for _, path := range []string{
		filepath.Join(t.root("cpuset"), "cpuset.cpus.effective"), // version 2
		filepath.Join(t.root("cpuset"), "cpuset.effective_cpus"), // version 1
		onlineCPUs,
	} {
		text, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		if list := strings.TrimSpace(string(text)); list != "" {
			return list, nil
		}
	}
	return "", nil
}

// checkCPUs refuses a set with processors that containers cannot be given. The
// kernel would refuse it too, but in words of its own and only after all else
// was made.
func (t cgroupTree) checkCPUs(set string) error {
	if set == "" {
		return nil
	}
	list, err := t.cpus()
	if err != nil || list == "" {
		return nil // it is the kernel's to say
	}
	have, err := parseCPUs(list)
	if err != nil {
		return nil
	}
	want, err := parseCPUs(set)
	if err != nil {
		return err
	}
	for cpu := range want {
		if !have[cpu] {
			return fmt.Errorf("CPU set %q: this node has the CPUs %s", set, list)
		}
	}
	return nil
}

// parseCPUs reads the list format of cpuset(7), such as "0-3,6".
func parseCPUs(list string) (map[int]bool, error) {
	set := map[int]bool{}
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, err := strconv.ParseUint(from, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("CPU set %q: want a list such as 0-3,6", list)
		}
		b, err := strconv.ParseUint(to, 10, 16)
		if err != nil || b < a {
			return nil, fmt.Errorf("CPU set %q: want a list such as 0-3,6", list)
		}
		for ; a <= b; a++ {
			set[int(a)] = true
		}
	}
	return set, nil
}
