package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Options of a Server. The zero value is what most programs want.
type Options struct {
	// Domain is what fully qualified names end in; "orchestrate.internal"
	// when empty ("internal" is reserved for private use).
	Domain string
	// Upstream servers get what is not answered here, in this order. When
	// nil they are those of /etc/resolv.conf, read again when it changes;
	// empty and not nil means none: everything else is refused.
	Upstream []netip.AddrPort
	// TTL of answers, rounded up to seconds; 1 s when 0, for tasks come and go.
	TTL time.Duration
	// Timeout is how long one upstream server is waited for; 2 s when 0.
	Timeout time.Duration
	// Concurrency is the most questions that are with upstream servers, and
	// the most TCP connections, at one time; 256 when 0. What is more is
	// answered SERVFAIL, or closed.
	Concurrency int
	// Port to listen on; 53 when 0.
	Port uint16
	// Network makes the sockets; nil means package net. A node in another
	// network namespace has its own.
	Network Network
	// Logger gets what is worth knowing and no error; nil means silence.
	Logger *slog.Logger
}

// Network makes sockets. net.ListenConfig and net.Dialer have such methods.
type Network interface {
	// Listen makes a socket that accepts TCP, as [net.ListenConfig.Listen].
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	// ListenPacket makes a UDP socket, as [net.ListenConfig.ListenPacket].
	ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error)
	// DialContext connects to an upstream server, as [net.Dialer.DialContext].
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// system is package net as a Network.
type system struct {
	net.ListenConfig
	net.Dialer
}

// ErrClosed is a call of a Server that has ended.
var ErrClosed = errors.New("the dns server is closed")

// Server answers names on a node's networks.
type Server struct {
	options Options
	domain  string
	ttl     uint32
	limit   chan struct{} // one for each question that is with an upstream server
	conns   chan struct{} // one for each TCP connection
	files   resolvConf

	zones atomic.Pointer[map[netip.Addr]*table] // by listening address

	mu      sync.Mutex // guards what follows
	sockets map[netip.Addr]*socket
	closed  bool
	wake    chan struct{} // capacity 1: sockets were added
}

// socket is where questions come in on one address.
type socket struct {
	address  netip.Addr
	packets  net.PacketConn
	listener net.Listener
	serving  bool
}

func (s *socket) close() error {
	return errors.Join(s.packets.Close(), s.listener.Close())
}

// New returns a server without zones. It listens nowhere before Set.
func New(options Options) *Server {
	options.TTL = cmp.Or(options.TTL, time.Second)
	options.Timeout = cmp.Or(options.Timeout, 2*time.Second)
	options.Concurrency = cmp.Or(max(options.Concurrency, 0), 256)
	options.Port = cmp.Or(options.Port, 53)
	if options.Network == nil {
		options.Network = &system{}
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		options: options,
		domain:  dns.Fqdn(strings.ToLower(cmp.Or(strings.Trim(options.Domain, "."), "orchestrate.internal"))),
		ttl:     uint32((options.TTL + time.Second - 1) / time.Second),
		limit:   make(chan struct{}, options.Concurrency),
		conns:   make(chan struct{}, options.Concurrency),
		files:   resolvConf{path: "/etc/resolv.conf"},
		sockets: map[netip.Addr]*socket{},
		wake:    make(chan struct{}, 1),
	}
	s.zones.Store(&map[netip.Addr]*table{})
	return s
}

// Search returns the search list of tasks of a namespace, for their
// resolv.conf: with it names of one label are found in their own namespace.
func (s *Server) Search(namespace string) []string {
	domain := strings.TrimSuffix(s.domain, ".")
	return []string{cmp.Or(namespace, "default") + ".svc." + domain, "svc." + domain}
}

// Set makes zones the whole of what is answered, in one step. A zone that
// makes no sense is a [*ZoneError], an address that cannot be listened on is
// the error of package net; either way nothing has changed. Questions are
// answered while Run runs.
func (s *Server) Set(zones []Zone) error {
	next := map[netip.Addr]*table{}
	names := map[string]bool{}
	for _, z := range zones {
		if names[z.Network] {
			return &ZoneError{Network: z.Network, Field: "network", Reason: "is there twice"}
		}
		names[z.Network] = true
		t, err := compile(z, s.domain)
		if err != nil {
			return err
		}
		for _, a := range z.Listen {
			if other := next[a]; other != nil {
				return &ZoneError{Network: z.Network, Field: "listen", Reason: fmt.Sprintf("%s is of network %q already", a, other.Network)}
			}
			next[a] = t
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	var added []*socket
	for a := range next {
		if s.sockets[a] != nil {
			continue
		}
		sock, err := s.listen(a)
		if err != nil {
			for _, done := range added {
				_ = done.close() // never served
			}
			return fmt.Errorf("dns zone of network %q: %w", next[a].Network, err)
		}
		added = append(added, sock)
	}
	s.zones.Store(&next)
	for _, sock := range added {
		s.sockets[sock.address] = sock
	}
	for a, sock := range s.sockets {
		if next[a] == nil {
			delete(s.sockets, a)
			_ = sock.close() // ends its loops
		}
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

func (s *Server) listen(a netip.Addr) (*socket, error) {
	address := netip.AddrPortFrom(a, s.options.Port).String()
	packets, err := s.options.Network.ListenPacket(context.Background(), "udp", address)
	if err != nil {
		return nil, err
	}
	listener, err := s.options.Network.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, errors.Join(err, packets.Close())
	}
	return &socket{address: a, packets: packets, listener: listener}, nil
}

// Run answers questions until ctx ends, and closes the server then. It
// returns ctx's cause, or [ErrClosed] where it was closed before.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer s.Close() //nolint:errcheck // closing sockets that were read from
	for {
		s.mu.Lock()
		closed := s.closed
		for _, sock := range s.sockets {
			if !sock.serving {
				sock.serving = true
				wg.Go(func() { s.serveUDP(ctx, sock, &wg) })
				wg.Go(func() { s.serveTCP(ctx, sock, &wg) })
			}
		}
		s.mu.Unlock()
		if closed {
			return ErrClosed
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.wake:
		}
	}
}

// Close stops listening, and ends Run. Calling it again does nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var errs []error
	for a, sock := range s.sockets {
		errs = append(errs, sock.close())
		delete(s.sockets, a)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return errors.Join(errs...)
}

// zone returns what is answered on an address, nil when nothing is any more.
func (s *Server) zone(a netip.Addr) *table { return (*s.zones.Load())[a] }

// serveUDP answers what it knows itself in its own loop, and starts a
// goroutine for a question that waits for others.
func (s *Server) serveUDP(ctx context.Context, sock *socket, wg *sync.WaitGroup) {
	buf := make([]byte, dns.MaxMsgSize)
	for {
		n, from, err := sock.packets.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			if !pause(ctx) {
				return
			}
			continue
		}
		client := addrOf(from)
		t := s.zone(sock.address)
		if t == nil {
			continue
		}
		out, req, v := t.respond(buf[:n], client, s.ttl, true)
		switch v {
		case reply:
			_, _ = sock.packets.WriteTo(out, from) // the client asks again
		case forward:
			s.within(wg, func(full bool) {
				if out := s.ask(ctx, req, true, full); out != nil {
					_, _ = sock.packets.WriteTo(out, from)
				}
			})
		}
	}
}

// pause waits for better times after an error of a socket, such as too many
// open files. It is false when ctx ends.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(50 * time.Millisecond):
		return true
	}
}

// within runs fn in a goroutine of its own while there are not too many, and
// here, saying so, when there are.
func (s *Server) within(wg *sync.WaitGroup, fn func(full bool)) {
	select {
	case s.limit <- struct{}{}:
		wg.Go(func() {
			defer func() { <-s.limit }()
			fn(false)
		})
	default:
		fn(true)
	}
}

func (s *Server) serveTCP(ctx context.Context, sock *socket, wg *sync.WaitGroup) {
	for {
		c, err := sock.listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			if !pause(ctx) {
				return
			}
			continue
		}
		select {
		case s.conns <- struct{}{}:
			wg.Go(func() {
				defer func() { <-s.conns }()
				s.serveConn(ctx, sock, c)
			})
		default:
			_ = c.Close() // too many
		}
	}
}

// idle is how long a TCP client may take for its next question (RFC 7766,
// 6.2.3, asks for a few seconds).
const idle = 10 * time.Second

func (s *Server) serveConn(ctx context.Context, sock *socket, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	defer c.Close() //nolint:errcheck // what counts was written
	conn := &dns.Conn{Conn: c}
	for {
		if c.SetDeadline(time.Now().Add(idle)) != nil {
			return
		}
		packet, err := conn.ReadMsgHeader(nil)
		if err != nil {
			return
		}
		t := s.zone(sock.address)
		if t == nil {
			return
		}
		out, req, v := t.respond(packet, addrOf(c.RemoteAddr()), s.ttl, false)
		switch v {
		case drop:
			return
		case forward:
			select {
			case s.limit <- struct{}{}:
				out = s.ask(ctx, req, false, false)
				<-s.limit
			default:
				out = s.ask(ctx, req, false, true)
			}
		}
		if out == nil {
			return
		}
		if _, err := conn.Write(out); err != nil {
			return
		}
	}
}

func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
