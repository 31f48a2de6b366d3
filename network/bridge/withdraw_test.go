//go:build linux

package bridge

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

// After Program no new connection goes to a withdrawn endpoint; TCP
// connections that are established go on, UDP flows move.
func TestWithdraw(t *testing.T) {
	w := newWorld(t)
	outside := w.outside()
	w.ensure(front)
	a, b, client := w.task("a"), w.task("b"), w.task("client")
	w.serve(a.ns, "a", 80)
	w.serve(b.ns, "b", 80)
	rules := func(tasks ...*task) (all []network.Rule) {
		for _, proto := range []network.Protocol{network.TCP, network.UDP} {
			all = append(all,
				network.Rule{Service: "web", Protocol: proto, Address: vip4, Port: 80, Endpoints: endpoints(80, tasks...)},
				network.Rule{Service: "web", Protocol: proto, Address: vip6, Port: 80, Endpoints: endpoints(80, tasks...)},
				network.Rule{Service: "web", Protocol: proto, Port: 8080, Endpoints: endpoints(80, tasks...)},
			)
		}
		return all
	}
	paths := []struct {
		ns *os.File
		to string
	}{
		{client.ns, "10.72.0.1:80"}, {client.ns, "[fd00:72::1]:80"}, {w.hostNS, "10.72.0.1:80"},
		{w.hostNS, "127.0.0.1:8080"}, {outside, "198.51.100.1:8080"}, {outside, "[fd00:99::1]:8080"},
	}
	w.program(rules(a)...)
	open := map[string][]net.Conn{}
	for _, proto := range []string{"tcp", "udp"} {
		for _, p := range paths {
			c, err := connect(p.ns, proto, p.to, time.Second)
			if err != nil {
				t.Fatalf("%s %s: %v", proto, p.to, err)
			}
			defer c.Close() //nolint:errcheck // the end of the test
			if name, _, err := askOn(c); err != nil || name != "a" {
				t.Fatalf("%s %s: %q, %v, want a", proto, p.to, name, err)
			}
			open[proto] = append(open[proto], c)
		}
	}
	w.program(rules(b)...)
	for i, p := range paths {
		if name, _, err := askOn(open["tcp"][i]); err != nil || name != "a" {
			t.Errorf("established connection to %s after its endpoint's withdrawal: %q, %v, want it to go on with a", p.to, name, err)
		}
		if name, _, err := askOn(open["udp"][i]); err != nil || name != "b" {
			t.Errorf("UDP flow to %s after its endpoint's withdrawal: %q, %v, want b", p.to, name, err)
		}
		for range 10 {
			if name, _, err := ask(p.ns, "tcp", p.to); err != nil || name != "b" {
				t.Errorf("new connection to %s: %q, %v, want b", p.to, name, err)
			}
		}
	}
	// The same after a restart, which knows of no rules before.
	w.reopen()
	w.ensure(front)
	w.program(rules(a)...)
	for i, p := range paths {
		if name, _, err := askOn(open["tcp"][i]); err != nil || name != "a" {
			t.Errorf("established connection to %s after a restart: %q, %v, want a", p.to, name, err)
		}
		if name, _, err := askOn(open["udp"][i]); err != nil || name != "a" {
			t.Errorf("UDP flow to %s after a restart: %q, %v, want a", p.to, name, err)
		}
	}
	// A flow that began when nobody served the port finds the first endpoint.
	w.program()
	c, err := connect(outside, "udp", "198.51.100.1:8080", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the end of the test
	if _, _, err := askOn(c); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("UDP to a port that is not published: %v, want connection refused", err)
	}
	w.program(rules(b)...)
	if name, _, err := askOn(c); err != nil || name != "b" {
		t.Errorf("UDP flow that began before the port was published: %q, %v, want b", name, err)
	}
}

// A connection whose SYN got no answer, because its endpoint's namespace is
// gone, goes to another endpoint as soon as that one is withdrawn.
func TestUnansweredConnectionMoves(t *testing.T) {
	w := newWorld(t)
	w.ensure(front)
	b, client := w.task("b"), w.task("client")
	w.serve(b.ns, "b", 80)
	nobody := []netip.AddrPort{netip.MustParseAddrPort("10.71.200.200:80")}
	rule := network.Rule{Service: "web", Address: vip4, Port: 80, Endpoints: nobody}
	w.program(rule)
	type answer struct {
		name string
		err  error
	}
	tracked := w.newFlows()
	got := make(chan answer, 1)
	go func() {
		name, _, err := ask(client.ns, "tcp", "10.72.0.1:80")
		got <- answer{name, err}
	}()
	for w.unanswered() == 0 {
		tracked() // the next one; the SYN's is among them
	}
	rule.Endpoints = b.endpoints(80)
	w.program(rule)
	if a := <-got; a.err != nil || a.name != "b" {
		t.Errorf("connection begun to a dead endpoint: %q, %v, want b after its withdrawal", a.name, a.err)
	}
}

// A packet may be sent to an endpoint by the table before a change and leave by the
// one after it. It goes nowhere, and its client's next try finds another endpoint.
func TestConnectionToWithdrawnEndpointIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	w.ensure(front)
	b, client := w.task("b"), w.task("client")
	w.serve(b.ns, "b", 80)
	gone4, gone6 := netip.MustParseAddrPort("10.71.200.200:80"), netip.MustParseAddrPort("[fd00:71::c8]:80")
	nobody := []netip.AddrPort{gone4, gone6}
	both := append(b.endpoints(80), nobody...)
	w.program(
		network.Rule{Service: "web", Address: vip4, Port: 80, Endpoints: both},
		network.Rule{Service: "web", Address: vip6, Port: 80, Endpoints: both},
		network.Rule{Service: "web", Port: 8080, Endpoints: both},
	)
	// Such a packet is rare, so the table is put between the two: it sends to both,
	// and one is no endpoint any more.
	c, err := w.d.table.open()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range nobody {
		for el := range hairpin(e.Addr()) {
			if err := w.d.table.del(c, el.set, []nftables.SetElement{{Key: []byte(el.key)}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.d.table.flush(c); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		ns *os.File
		to string
	}{{client.ns, "10.72.0.1:80"}, {client.ns, "[fd00:72::1]:80"}, {w.hostNS, "10.72.0.1:80"}, {w.hostNS, "[::1]:8080"}} {
		for late := false; !late; {
			begun := time.Now()
			name, _, err := ask(p.ns, "tcp", p.to)
			if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
				continue // it met nobody at each try, of which there are three
			}
			if err != nil || name != "b" {
				t.Fatalf("connection to %s: %q, %v, want b", p.to, name, err)
			}
			late = time.Since(begun) > 500*time.Millisecond // it met nobody, and tried again
		}
	}
	if n := w.unanswered(); n > 0 {
		t.Errorf("connection tracking has %d unanswered connections, want none to the address that is no endpoint", n)
	}
}

// newFlows subscribes to the kernel's events of new flows and returns what waits
// for the next (linux/netfilter/nfnetlink_compat.h, NF_NETLINK_CONNTRACK_NEW).
func (w *world) newFlows() func() {
	w.Helper()
	var fd int
	err := inside(w.hostNS, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1})
	})
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = unix.Close(fd) })
	// Without an event the test fails, and does not hang.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
		w.Fatal(err)
	}
	buf := make([]byte, 8<<10)
	return func() {
		w.Helper()
		if _, _, err := unix.Recvfrom(fd, buf, 0); err != nil {
			w.Fatalf("the kernel tells of no new flow: %v", err)
		}
	}
}

// unanswered counts tracked TCP connections without a reply.
func (w *world) unanswered() (n int) {
	out, err := exec.Command("nsenter", "--net="+w.hostNS.Name(), "cat", "/proc/net/nf_conntrack").Output()
	if err != nil {
		w.Fatal(err)
	}
	return bytes.Count(out, []byte("UNREPLIED"))
}

// startChild runs this test binary as a server that can be killed.
func (w *world) startChild(ns *os.File, mode string) *exec.Cmd {
	w.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+mode)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.Fatal(err)
	}
	if err := inside(ns, cmd.Start); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		w.Fatalf("child: %v", err)
	}
	return cmd
}

// Endpoints die by SIGKILL, one after the other, and are withdrawn only a
// while after; no new connection fails, whoever the client. What an endpoint
// took before it died is lost with it: a connection in that moment may be
// reset, at most one for each client and death.
func TestNoFailedConnectionWhenAnEndpointDies(t *testing.T) {
	w := newWorld(t)
	outside := w.outside()
	w.ensure(front)
	client := w.task("client")
	tasks := []*task{w.task("a"), w.task("b"), w.task("c")}
	children := map[*task]*exec.Cmd{}
	for _, k := range tasks {
		children[k] = w.startChild(k.ns, "serve")
	}
	rules := func(tasks ...*task) []network.Rule {
		return []network.Rule{
			{Service: "web", Address: vip4, Port: 80, Endpoints: endpoints(80, tasks...)},
			{Service: "web", Address: vip6, Port: 80, Endpoints: endpoints(80, tasks...)},
			{Service: "web", Port: 8080, Endpoints: endpoints(80, tasks...)},
		}
	}
	w.program(rules(tasks...)...)

	paths := []struct {
		ns *os.File
		to string
	}{
		{client.ns, "10.72.0.1:80"}, {client.ns, "[fd00:72::1]:80"}, {w.hostNS, "10.72.0.1:80"}, {w.hostNS, "[fd00:72::1]:80"},
		{w.hostNS, "127.0.0.1:8080"}, {w.hostNS, "[::1]:8080"}, {outside, "198.51.100.1:8080"}, {outside, "[fd00:99::1]:8080"},
	}
	var (
		mu                sync.Mutex // guards the next two lines
		made, late, reset int
		failed            bool
		changed           = sync.NewCond(&mu)
		wg                sync.WaitGroup
		stop              = make(chan struct{})
	)
	count := func(change func()) {
		mu.Lock()
		defer mu.Unlock()
		change()
		changed.Broadcast()
	}
	for _, p := range paths {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				begun := time.Now()
				// Long enough for a SYN that meets the dead endpoint five times.
				c, err := connect(p.ns, "tcp", p.to, 40*time.Second)
				if errors.Is(err, unix.ECONNRESET) {
					count(func() { reset++ })
					continue
				}
				if err != nil {
					t.Errorf("connection to %s failed: %v", p.to, err)
					count(func() { failed = true })
					return
				}
				count(func() {
					made++
					if time.Since(begun) > 500*time.Millisecond {
						late++ // it met a dead endpoint, and tried again
					}
				})
				_ = c.Close()
			}
		})
	}
	wait := func(n int, what *int) { // until there are n more
		mu.Lock()
		defer mu.Unlock()
		for goal := *what + n; *what < goal && !failed; {
			changed.Wait()
		}
	}
	for i := range 2 {
		wait(100, &made)
		if err := children[tasks[i]].Process.Kill(); err != nil {
			t.Fatal(err)
		}
		wait(50, &made) // connections while the endpoint is dead and still published
		wait(1, &late)  // until one of them met the dead one
		w.program(rules(tasks[i+1:]...)...)
	}
	wait(100, &made)
	close(stop)
	wg.Wait()
	if late == 0 {
		t.Error("no connection met a dead endpoint: the test proved nothing")
	}
	if most := 2 * len(paths); reset > most {
		t.Errorf("%d connections were reset, want at most %d: those that the endpoints held when they died", reset, most)
	}
	t.Logf("%d connections, %d of which met a dead endpoint first, %d lost with theirs", made, late, reset)
}

func serveChild() error {
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		_ = c.Close()
	}
}
