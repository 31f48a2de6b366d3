//go:build linux

package local

import (
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/volume"
	"github.com/orchestrate-go/orchestrate/volume/volumetest"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		os.Exit(victim())
	}
	goleak.VerifyTestMain(m)
}

// testDir returns a folder for a driver, and asserts at the end of the test
// that nothing is mounted below it.
func testDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		left, err := mountsBelow(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("mounts are left: %q, %v", left, err)
		}
		if err := unmountBelow(dir); err != nil {
			t.Error(err)
		}
		// Containers that others start hold a copy of all mounts for a
		// moment, and with it the device. The kernel tells when one changes.
		changed := deviceChanges(t)
		for loops := loopsBelow(t, dir); len(loops) > 0; loops = loopsBelow(t, dir) {
			if err := changed(); err != nil {
				t.Errorf("loop devices are left: %q (%v)", loops, err)
				return
			}
		}
	})
	return dir
}

// deviceChanges subscribes to the kernel's events of devices (netlink(7),
// NETLINK_KOBJECT_UEVENT) and returns what waits for the next one.
func deviceChanges(t *testing.T) func() error {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}))
	buf := make([]byte, 8<<10)
	return func() error {
		_, _, err := unix.Recvfrom(fd, buf, 0)
		return err
	}
}

// loopsBelow lists the loop devices whose image is below dir.
func loopsBelow(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	var loops []string
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && len(data) > len(dir) && string(data[:len(dir)]) == dir {
			loops = append(loops, f)
		}
	}
	return loops
}

func mustOpen(t *testing.T, dir string, roots ...string) *Driver {
	t.Helper()
	d, err := Open(Options{Dir: dir, BindRoots: roots})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestConformance(t *testing.T) {
	for name, options := range map[string]map[string]string{
		"auto": nil,
		"dir":  {"size-mode": "none"},
		"loop": {"size-mode": "loop"},
	} {
		t.Run(name, func(t *testing.T) {
			volumetest.Run(t, func(t *testing.T) volumetest.Harness {
				base := testDir(t)
				source := filepath.Join(base, "srv", "data")
				if err := os.MkdirAll(source, 0o755); err != nil {
					t.Fatal(err)
				}
				return volumetest.Harness{
					Open: func() (volume.Driver, error) {
						return Open(Options{Dir: filepath.Join(base, "volumes"), BindRoots: []string{source}})
					},
					Options: options, BindSource: source, BindOutside: "/etc",
				}
			})
		})
	}
}
