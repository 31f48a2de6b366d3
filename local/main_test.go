//go:build linux

package local

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/internal/leak"
	"github.com/orchestrate-go/orchestrate/internal/machine"
)

// Environment variables of the processes that the tests are made of.
const (
	envInside  = "ORCHESTRATE_TEST_INSIDE"  // this is the one that runs the tests
	envProgram = "ORCHESTRATE_TEST_PROGRAM" // this is a program to be killed; see crash_test.go
)

// What the tests share: made by TestMain, read by all.
var (
	before  leak.Machine // what was there before the first test
	binary  string       // testdata/program
	folders string       // the fleets' folders are in it
	live    int          // fleets' folders that exist now
)

// hostIPv4 and hostIPv6 are addresses of the machine that the tests run on.
var (
	hostIPv4 = netip.MustParsePrefix("192.0.2.1/24")   // RFC 5737
	hostIPv6 = netip.MustParsePrefix("2001:db8::1/64") // RFC 3849
)

// TestMain runs the tests in a network namespace of their own: the ports that
// they publish are theirs, and whatever interface or table is left in it was
// left by them, whoever else tests on this machine at the same time.
func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	fail := func(doing string, err error) int {
		fmt.Fprintf(os.Stderr, "%s: %v\n", doing, err)
		return 1
	}
	if os.Geteuid() != 0 {
		return fail("package local", errors.New("its tests need root"))
	}
	if os.Getenv(envProgram) != "" {
		if err := crashProgram(os.Getenv(envProgram)); err != nil {
			return fail("program", err)
		}
		return 0
	}
	if os.Getenv(envDaemon) != "" {
		if err := daemon(os.Getenv(envDaemon)); err != nil {
			return fail("containerd", err)
		}
		return 0
	}
	if os.Getenv(envInside) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), envInside+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Run(); err != nil {
			return fail("tests in their network namespace", err)
		}
		return 0
	}
	if err := makeHost(); err != nil {
		return fail("make the host's interfaces", err)
	}
	var err error
	if folders, err = os.MkdirTemp("", "orchestrate-local-"); err != nil {
		return fail("tests", err)
	}
	defer machine.RemoveFolder(folders)
	binary = filepath.Join(folders, "program")
	cmd := exec.Command("go", "build", "-o", binary, "./testdata/program")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fail("build the containers' program", fmt.Errorf("%w\n%s", err, out))
	}
	if before, err = leak.Look(); err != nil {
		return fail("look at the machine", err)
	}
	code := m.Run()
	client.CloseIdleConnections()
	if bareStarted != nil {
		// The benchmarks' containerd cannot be stopped.
		if err := bareStarted.Close(); err != nil {
			return fail("benchmarks", err)
		}
	} else if code == 0 {
		if err := goleak.Find(); err != nil {
			return fail("goroutines", err)
		}
	}
	return code
}

// makeHost gives the fresh network namespace what a machine has: a loopback
// interface, and one with addresses and the way out.
func makeHost() error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "host0"}, PeerName: "world0"}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	for _, name := range []string{"lo", "host0", "world0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	for _, p := range []netip.Prefix{hostIPv4, hostIPv6} {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
		out := &netlink.Route{LinkIndex: link.Index, Gw: p.Addr().Next().AsSlice()}
		if err := netlink.RouteAdd(out); err != nil {
			return err
		}
	}
	return nil
}

// testImage is the reference of the containers' program.
const testImage = "orchestrate.test/program:1"

// newFolder returns the path of a folder for a fleet, and fails the test if
// anything of that fleet is left after it.
func newFolder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(folders, "fleet-")
	if err != nil {
		t.Fatal(err)
	}
	live++
	t.Cleanup(func() {
		live--
		if !t.Failed() { // else what failed is of more interest
			nothingLeft(t, dir)
		}
		if err := machine.RemoveFolder(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// nothingLeft fails the test if anything of the fleet in dir is on the
// machine. A process on its way out is waited for.
func nothingLeft(t testing.TB, dir string) {
	t.Helper()
	if left := leftOf(t, dir); len(left) > 0 {
		t.Errorf("left on the machine: %q, want nothing", left)
	}
}

func leftOf(t testing.TB, dir string) []string {
	t.Helper()
	state := stateOf(dir)
	after, err := leak.Look(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, name := range after.Since(before) {
		kind, rest, _ := strings.Cut(name, ": ")
		switch kind {
		case "interface":
			// Its name does not tell whose it is, but who else could it be.
			if live == 0 {
				left = append(left, name)
			}
		case "nftables table":
			if strings.Contains(rest, fleetID(dir)) {
				left = append(left, name)
			}
		case "process": // below
		default:
			if strings.Contains(rest, state) || strings.Contains(rest, dir) {
				left = append(left, name)
			}
		}
	}
	for _, name := range processesOf(t, dir) {
		if !ends(t, name) {
			left = append(left, name)
		}
	}
	return left
}

// stateOf returns how the runtime of the fleet in dir names its folder in
// /run/orchestrate and its cgroup.
func stateOf(dir string) string {
	sum := sha256.Sum256([]byte(filepath.Join(dir, "containers")))
	return hex.EncodeToString(sum[:6])
}

// processesOf returns the shims and runcs of the fleet in dir, each with its
// number first.
func processesOf(t testing.TB, dir string) (found []string) {
	t.Helper()
	machine, err := leak.Look()
	if err != nil {
		t.Fatal(err)
	}
	for name := range machine {
		if rest, ok := strings.CutPrefix(name, "process: "); ok && strings.Contains(rest, stateOf(dir)) {
			found = append(found, rest)
		}
	}
	slices.Sort(found)
	return found
}

// ends waits for the end of a process that was told to, by event, and reports
// whether it came.
func ends(t testing.TB, process string) bool {
	pid := 0
	if _, err := fmt.Sscan(process, &pid); err != nil {
		t.Fatalf("process %q has no number: %v", process, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 2000)
		if err != unix.EINTR {
			return n > 0
		}
	}
}
