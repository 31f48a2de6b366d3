package etcdtest

import (
	"bytes"
	"net"
	"sync"
	"testing"
)

// Proxy forwards TCP connections on loopback, until it is told not to. A cut
// proxy behaves like a network that loses every packet: connections stay open,
// new ones are accepted, and nothing passes; when it is healed, what was on its
// way arrives.
type Proxy struct {
	listener net.Listener
	target   func() string
	peers    bool // tell connections apart by the etcd member that they come from
	wg       sync.WaitGroup

	mu     sync.Mutex // guards what follows
	change *sync.Cond
	cut    map[string]bool // by source; "" is everybody
	conns  map[net.Conn]struct{}
	closed bool
}

// newProxy starts a proxy in front of an address. It is closed with the test.
func newProxy(t testing.TB, target func() string, peers bool) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: l, target: target, peers: peers, cut: map[string]bool{}, conns: map[net.Conn]struct{}{}}
	p.change = sync.NewCond(&p.mu)
	p.wg.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// URL is where the proxy listens.
func (p *Proxy) URL() string { return "http://" + p.listener.Addr().String() }

// Cut stops everything, or, with the ID of a member, what comes from it.
func (p *Proxy) Cut(source string) { p.set(source, true) }

// Drop closes all connections that are open, as a router does that forgets them.
func (p *Proxy) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		conn.Close()
	}
}

// Heal lets it pass again.
func (p *Proxy) Heal(source string) { p.set(source, false) }

func (p *Proxy) set(source string, cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut[source] = cut
	p.change.Broadcast()
}

func (p *Proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		if !p.hold(conn) {
			return
		}
		p.wg.Go(func() { p.serve(conn) })
	}
}

// hold keeps a connection for close.
func (p *Proxy) hold(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		conn.Close()
		return false
	}
	p.conns[conn] = struct{}{}
	return true
}

func (p *Proxy) drop(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
	conn.Close()
}

func (p *Proxy) serve(near net.Conn) {
	defer p.drop(near)
	var head []byte
	source := ""
	if p.peers {
		head, source = sniff(near)
	}
	if !p.passes(source) {
		return
	}
	far, err := net.Dial("tcp", p.target())
	if err != nil || !p.hold(far) {
		return
	}
	defer p.drop(far)
	var both sync.WaitGroup
	both.Go(func() { p.copy(far, near, head, source) })
	both.Go(func() { p.copy(near, far, nil, source) })
	both.Wait()
}

// copy forwards until an end closes. The end too is held back while it is cut.
func (p *Proxy) copy(to, from net.Conn, first []byte, source string) {
	defer to.Close()
	if len(first) > 0 {
		if _, err := to.Write(first); err != nil {
			return
		}
	}
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if !p.passes(source) {
			return
		}
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// passes waits until what comes from source may pass; false when the proxy was
// closed.
func (p *Proxy) passes(source string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && (p.cut[""] || p.cut[source]) {
		p.change.Wait()
	}
	return !p.closed
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	for conn := range p.conns {
		conn.Close()
	}
	p.change.Broadcast()
	p.mu.Unlock()
	p.listener.Close()
	p.wg.Wait()
}

// sniff reads the head of the first request on a connection between members,
// which names the member that it comes from.
func sniff(conn net.Conn) (head []byte, source string) {
	buffer := make([]byte, 4096)
	for !bytes.Contains(head, []byte("\r\n\r\n")) && len(head) < 64<<10 {
		n, err := conn.Read(buffer)
		head = append(head, buffer[:n]...)
		if err != nil {
			break
		}
	}
	for _, line := range bytes.Split(head, []byte("\r\n")) {
		if name, value, found := bytes.Cut(line, []byte(": ")); found && bytes.EqualFold(name, []byte("X-Server-From")) {
			return head, string(value)
		}
	}
	return head, ""
}
