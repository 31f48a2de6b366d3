//go:build linux

package bridge

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// setSysctl writes a value of the network namespace that the calling thread
// is in, unless it is that already: a write can be costly or audited.
func setSysctl(name, value string) error {
	path := sysctlPath(name)
	if old, err := os.ReadFile(path); err == nil && string(bytes.TrimSpace(old)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s to %q: %w", name, value, err)
	}
	return nil
}

// sysctlPath follows sysctl(8): the first separator of a name, dot or slash,
// is its separator, so that net/ipv4/conf/eth0.1/arp_ignore can be said.
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		name = strings.ReplaceAll(name, ".", "/")
	}
	return filepath.Join("/proc/sys", name)
}
