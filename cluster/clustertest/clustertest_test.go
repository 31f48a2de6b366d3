//go:build linux

package clustertest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/cluster/clustertest"
	"github.com/orchestrate-go/orchestrate/internal/leak"
)

// roleEnv makes the test's program one that runs on a host.
const roleEnv = "ORCHESTRATE_TEST_CLUSTER_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		if err := play(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "package clustertest: its tests need root")
		return 1
	}
	// Clean is for the machine: what tests of other packages have is not there
	// while those of this one look at what it does.
	turn, err := os.Open(".")
	if err == nil {
		err = unix.Flock(int(turn.Fd()), unix.LOCK_EX)
	}
	if err == nil {
		_, err = clustertest.Clean()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer turn.Close()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// play is what the program does on a host.
func play(role string) error {
	switch role {
	case "echo":
		l, err := net.Listen("tcp", ":7")
		if err != nil {
			return err
		}
		name, err := os.Hostname()
		if err != nil {
			return err
		}
		fmt.Println("listening")
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			fmt.Fprintln(c, name)
			c.Close()
		}
	case "clock":
		var mono, boot, wall unix.Timespec
		if err := errors.Join(unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono), unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot),
			unix.ClockGettime(unix.CLOCK_REALTIME, &wall)); err != nil {
			return err
		}
		fmt.Println(mono.Sec, boot.Sec, wall.Sec)
		return nil
	case "leave": // has a cluster, and is killed
		c, err := clustertest.New(clustertest.Options{Hosts: 2, Disk: 8 << 20, Dir: os.Getenv(dirEnv)})
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		p, err := c.Hosts()[0].Start(clustertest.Program{Name: "child", Path: "/bin/sh", Args: []string{"-c", self + " & exec sleep 1000"}, Env: []string{roleEnv + "=echo"}})
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(c.Host("n2").Dir, "file"), nil, 0o600); err != nil {
			return err
		}
		fmt.Println(p.PID(), c.Dir())
		select {}
	}
	return fmt.Errorf("no role %q", role)
}

const dirEnv = "ORCHESTRATE_TEST_CLUSTER_DIR"

func newCluster(t *testing.T, opts clustertest.Options) *clustertest.Cluster {
	t.Helper()
	before, err := leak.Look()
	if err != nil {
		t.Fatal(err)
	}
	c, err := clustertest.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, before, c.Dir())
	})
	return c
}

// nothingLeft looks for what a cluster could have left. Others may work on this
// machine at the same time, in namespaces of their own: what has the words of a
// cluster counts.
func nothingLeft(t *testing.T, before leak.Machine, dir string) {
	t.Helper()
	after, err := leak.Look(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, left := range after.Since(before) {
		if strings.Contains(left, "clustertest") || strings.HasPrefix(left, "interface: oct") {
			t.Errorf("left on the machine: %s", left)
		}
	}
}

func echo(t *testing.T, h *clustertest.Host) *clustertest.Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := h.Start(clustertest.Program{Name: "echo", Path: self, Env: []string{roleEnv + "=echo"}})
	if err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(p.Output(1000), "listening") {
		if !p.Running() {
			t.Fatalf("the program on %s: %v\n%s", h.Name, p.Wait(), p.Output(1000))
		}
		time.Sleep(time.Millisecond)
	}
	return p
}

type dial func(ctx context.Context, network, address string) (net.Conn, error)

// ask returns who answers at an address.
func ask(t *testing.T, dial dial, to netip.Addr, patience time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := dial(ctx, "tcp", netip.AddrPortFrom(to, 7).String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

const (
	long  = 10 * time.Second
	short = 150 * time.Millisecond
)

func TestHosts(t *testing.T) {
	c := newCluster(t, clustertest.Options{Hosts: 3})
	for _, h := range c.Hosts() {
		echo(t, h)
	}
	var own net.Dialer
	for _, to := range c.Hosts() {
		for _, addr := range []netip.Addr{to.IPv4, to.IPv6} {
			for _, from := range c.Hosts() {
				if got, err := ask(t, from.Dial, addr, long); got != to.Name {
					t.Errorf("%s asks %v: %q, %v; want %q", from.Name, addr, got, err, to.Name)
				}
			}
			if got, err := ask(t, own.DialContext, addr, long); got != to.Name {
				t.Errorf("this program asks %v: %q, %v; want %q", addr, got, err, to.Name)
			}
		}
	}
	// Mounts are a host's own, and the place of sockets too.
	one, two := c.Host("n1"), c.Host("n2")
	err := one.Do(func() error { return os.WriteFile("/run/orchestrate/"+t.Name(), nil, 0o600) })
	if err != nil {
		t.Fatal(err)
	}
	for _, look := range []func(func() error) error{two.Do, func(f func() error) error { return f() }} {
		err := look(func() error {
			_, err := os.Stat("/run/orchestrate/" + t.Name())
			return err
		})
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("another host sees what n1 has in /run/orchestrate: %v", err)
		}
	}
	// A runtime beside the cluster removes the folder when it finds it empty.
	if err := os.Remove("/run/orchestrate"); err == nil {
		t.Error("the folder that hosts have mounts on can be removed, and the mounts with it")
	}
	if err := one.Do(func() error { return os.Remove("/run/orchestrate/" + t.Name()) }); err != nil {
		t.Errorf("what n1 has in /run/orchestrate: %v", err)
	}
}

func TestProcesses(t *testing.T) {
	c := newCluster(t, clustertest.Options{Hosts: 1})
	h := c.Hosts()[0]
	p := echo(t, h)
	if _, err := h.Start(clustertest.Program{Name: "echo", Path: "/bin/true"}); err == nil {
		t.Error("a second process has the name of one that runs")
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if who, err := ask(t, h.Dial, h.IPv4, short); err == nil {
		t.Errorf("a process that is stopped answers %q", who)
	}
	if err := p.Continue(); err != nil {
		t.Fatal(err)
	}
	if who, err := ask(t, h.Dial, h.IPv4, long); err != nil {
		t.Errorf("a process that goes on: %q, %v", who, err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := p.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("Wait: %v, want SIGKILL", err)
	}
	if _, err := ask(t, h.Dial, h.IPv4, long); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after the kill: %v, want the connection refused", err)
	}
	echo(t, h)
	if got := h.Process("echo"); got == p || !got.Running() {
		t.Error("Process is not the newest of its name")
	}
}

// A process of which the clock is moved sees its clock moved, and its machine's
// wall clock.
func TestClock(t *testing.T) {
	c := newCluster(t, clustertest.Options{Hosts: 1})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var seen [2][3]int64
	const by = 5000
	for i, moved := range []time.Duration{0, by * time.Second} {
		p, err := c.Hosts()[0].Start(clustertest.Program{Name: fmt.Sprint("clock", i), Path: self, Env: []string{roleEnv + "=clock"}, Clock: moved})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, p.Output(1000))
		}
		if _, err := fmt.Sscan(p.Output(1000), &seen[i][0], &seen[i][1], &seen[i][2]); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []int64{by, by, 0} {
		if got := seen[1][i] - seen[0][i]; got < want || got > want+1000 {
			t.Errorf("clock %d is %d s ahead, want %d", i, got, want)
		}
	}
}

func TestCuts(t *testing.T) {
	c := newCluster(t, clustertest.Options{Hosts: 3})
	for _, h := range c.Hosts() {
		echo(t, h)
	}
	var own net.Dialer
	dials := map[string]dial{clustertest.Self: own.DialContext}
	for _, h := range c.Hosts() {
		dials[h.Name] = h.Dial
	}
	// reach tells who can ask whom, such as "n1-n2 n1-n3".
	reach := func() string {
		var all []string
		for _, from := range []string{"n1", "n2", "n3", clustertest.Self} {
			for _, to := range c.Hosts() {
				if from == to.Name {
					continue
				}
				if _, err := ask(t, dials[from], to.IPv4, short); err == nil {
					all = append(all, from+"-"+to.Name)
				}
			}
		}
		return strings.Join(all, " ")
	}
	const whole = "n1-n2 n1-n3 n2-n1 n2-n3 n3-n1 n3-n2 self-n1 self-n2 self-n3"
	for _, step := range []struct {
		what string
		do   func() error
		want string
	}{
		{"at first", func() error { return nil }, whole},
		{"n1 is cut off", c.Host("n1").Cut, "n2-n3 n3-n2 self-n2 self-n3"},
		{"n1 is healed", c.Host("n1").Heal, whole},
		{"n2 is parted from n1 and n3", func() error { return c.Partition([]string{"n2"}, []string{"n1", "n3"}) },
			"n1-n3 n3-n1 self-n1 self-n2 self-n3"},
		{"all is healed", c.Heal, whole},
		// Nobody connects when the answers do not come.
		{"what n3 sends to n1 is lost", func() error { return c.Lose("n3", "n1", 1) },
			"n1-n2 n2-n1 n2-n3 n3-n2 self-n1 self-n2 self-n3"},
		{"all is healed again", c.Heal, whole},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := reach(); got != step.want {
			t.Errorf("%s: %s\nwant %s", step.what, got, step.want)
		}
	}
	if err := c.Lose("n1", "n9", 1); err == nil {
		t.Error("frames to a host that there is not can be lost")
	}
	if err := c.Lose("n1", "n2", 1.5); err == nil {
		t.Error("more than all frames can be lost")
	}
	if err := c.Host("n1").Shape(clustertest.Shape{}, clustertest.Shape{}); err == nil {
		t.Error("a link of the kernel can be shaped")
	}
}

// send sends numbered datagrams from one host to another and returns the numbers
// in the order in which they come; it ends when none came for a while.
func send(t *testing.T, from, to *clustertest.Host, n int) (got []int) {
	t.Helper()
	var in, out net.PacketConn
	if err := to.Do(func() (err error) {
		in, err = net.ListenPacket("udp4", netip.AddrPortFrom(to.IPv4, 9000).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := from.Do(func() (err error) {
		out, err = net.ListenPacket("udp4", netip.AddrPortFrom(from.IPv4, 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	arrived := make(chan []int, 1)
	sent := make(chan struct{})
	go func() {
		var got []int
		defer func() { arrived <- got }()
		buffer := make([]byte, 100)
		for {
			_ = in.SetReadDeadline(time.Now().Add(time.Second))
			size, _, err := in.ReadFrom(buffer)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				select {
				case <-sent:
					return
				default:
					continue
				}
			}
			number := 0
			if err == nil {
				_, err = fmt.Sscan(string(buffer[:size]), &number)
			}
			if err != nil {
				t.Error(err)
				return
			}
			got = append(got, number)
		}
	}()
	for i := range n {
		if i%20 == 0 {
			time.Sleep(time.Millisecond) // no more than queues hold
		}
		if _, err := fmt.Fprint(writerTo{out, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.IPv4, 9000))}, i); err != nil {
			t.Error(err)
			break
		}
	}
	close(sent)
	return <-arrived
}

type writerTo struct {
	net.PacketConn
	to net.Addr
}

func (w writerTo) Write(p []byte) (int, error) { return w.WriteTo(p, w.to) }

// About as many datagrams are lost as asked for.
func TestRandomLoss(t *testing.T) {
	c := newCluster(t, clustertest.Options{Hosts: 2})
	const n = 2000
	if got := len(send(t, c.Host("n1"), c.Host("n2"), n)); got != n {
		t.Errorf("%d of %d datagrams arrive where none is lost", got, n)
	}
	if err := c.Lose("n1", clustertest.Any, 0.3); err != nil {
		t.Fatal(err)
	}
	// Eight standard deviations of a binomial distribution, and the address that
	// may have to be asked for more than once.
	if got := len(send(t, c.Host("n1"), c.Host("n2"), n)); got < 1200 || got > 1600 {
		t.Errorf("%d of %d datagrams arrive, want about 1400", got, n)
	}
}

// A link that goes through this program delays, doubles, reorders and loses.
func TestShape(t *testing.T) {
	c := newCluster(t, clustertest.Options{Hosts: 2, Shaped: true, Seed: 1})
	one, two := c.Host("n1"), c.Host("n2")
	echo(t, two)
	const n = 500
	sorted := func(got []int) bool {
		for i := 1; i < len(got); i++ {
			if got[i] < got[i-1] {
				return false
			}
		}
		return true
	}
	set := func(s clustertest.Shape) {
		t.Helper()
		if err := one.Shape(s, clustertest.Shape{}); err != nil {
			t.Fatal(err)
		}
	}
	if got := send(t, one, two, n); len(got) != n || !sorted(got) {
		t.Errorf("a link without a shape: %d of %d datagrams, in order %v", len(got), n, sorted(got))
	}
	set(clustertest.Shape{Duplicate: 1})
	if got := send(t, one, two, n); len(got) != 2*n || !sorted(got) {
		t.Errorf("all doubled: %d of %d datagrams, in order %v", len(got), 2*n, sorted(got))
	}
	set(clustertest.Shape{Reorder: 0.1})
	if got := send(t, one, two, n); len(got) != n || sorted(got) {
		t.Errorf("reordered: %d of %d datagrams, in order %v", len(got), n, sorted(got))
	}
	set(clustertest.Shape{Delay: 5 * time.Millisecond, Jitter: 20 * time.Millisecond})
	if got := send(t, one, two, n); len(got) != n || !sorted(got) {
		t.Errorf("with jitter: %d of %d datagrams, in order %v", len(got), n, sorted(got))
	}
	set(clustertest.Shape{Lose: 0.5})
	if got := len(send(t, one, two, n)); got < n/4 || got > 3*n/4 {
		t.Errorf("half is lost: %d of %d datagrams", got, n)
	}
	const delay = 200 * time.Millisecond
	set(clustertest.Shape{Delay: delay})
	began := time.Now()
	if who, err := ask(t, one.Dial, two.IPv4, long); who != "n2" {
		t.Fatalf("%q, %v", who, err)
	}
	if took := time.Since(began); took < delay {
		t.Errorf("an answer came after %v, before the question can have arrived", took)
	}
	if err := one.Shape(clustertest.Shape{Lose: 2}, clustertest.Shape{}); err == nil {
		t.Error("more than all frames can be lost")
	}
}

func TestDisk(t *testing.T) {
	c := newCluster(t, clustertest.Options{Hosts: 2, Disk: 4 << 20})
	one, two := c.Host("n1"), c.Host("n2")
	write := func(h *clustertest.Host) error {
		return h.Do(func() error { return os.WriteFile(filepath.Join(h.Dir, "file"), make([]byte, 64<<10), 0o600) })
	}
	if err := one.FillDisk(); err != nil {
		t.Fatal(err)
	}
	if err := write(one); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write to a full disk: %v, want ENOSPC", err)
	}
	if err := write(two); err != nil {
		t.Errorf("write to the other host's disk: %v", err)
	}
	for range 2 {
		if err := one.FreeDisk(); err != nil {
			t.Fatal(err)
		}
	}
	if err := write(one); err != nil {
		t.Errorf("write to a disk that was freed: %v", err)
	}
}

// What a program that was killed has left is removed by the next, and what
// another has is not.
func TestCleanAfterKill(t *testing.T) {
	before, err := leak.Look()
	if err != nil {
		t.Fatal(err)
	}
	mine := newCluster(t, clustertest.Options{Hosts: 1})
	echo(t, mine.Hosts()[0])
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), roleEnv+"=leave", dirEnv+"="+t.TempDir())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid, dir := 0, ""
	if _, err := fmt.Fscan(out, &pid, &dir); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Kill()
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	if err := unix.Kill(pid, 0); err != nil {
		t.Fatalf("the process on the host ended with the program: %v; then there is nothing to test", err)
	}
	removed, err := clustertest.Clean()
	if err != nil || len(removed) != 1 || removed[0] != dir {
		t.Errorf("Clean: %v, %v; want %s removed", removed, err, dir)
	}
	// Nobody may have waited for it yet.
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("the process on the host is there: %s", stat)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the hosts' folders are there: %v", err)
	}
	if who, err := ask(t, mine.Hosts()[0].Dial, mine.Hosts()[0].IPv4, long); err != nil {
		t.Errorf("a host of a program that lives: %q, %v", who, err)
	}
	if err := mine.Close(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, before, dir)
	if removed, err := clustertest.Clean(); err != nil || len(removed) > 0 {
		t.Errorf("Clean again: %v, %v; want nothing to do", removed, err)
	}
}
