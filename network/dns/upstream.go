package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// ask puts a question to the upstream servers, one after the other, and
// returns the packed answer. When full it is not even tried.
func (s *Server) ask(ctx context.Context, req *dns.Msg, udp, full bool) []byte {
	m := new(dns.Msg)
	upstream := s.upstream()
	switch {
	case full:
		m.SetRcode(req, dns.RcodeServerFailure)
	case len(upstream) == 0:
		m.SetRcode(req, dns.RcodeRefused)
	default:
		m = s.exchange(ctx, req, upstream)
	}
	out, err := pack(m, req, udp)
	if err != nil {
		return nil
	}
	return out
}

func (s *Server) exchange(ctx context.Context, req *dns.Msg, upstream []netip.AddrPort) *dns.Msg {
	query := req.Copy()
	query.Id = dns.Id() // a new one: a forger has to guess it
	for _, server := range upstream {
		m, err := s.exchangeWith(ctx, query, "udp", server)
		if err == nil && m.Truncated {
			m, err = s.exchangeWith(ctx, query, "tcp", server)
		}
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			s.options.Logger.Debug("upstream dns server does not answer", "server", server, "error", err)
			continue
		}
		m.Id = req.Id
		m.RecursionAvailable = true
		return m
	}
	m := new(dns.Msg)
	m.SetRcode(req, dns.RcodeServerFailure)
	m.RecursionAvailable = true
	return m
}

var errMismatch = errors.New("the answer is to another question")

func (s *Server) exchangeWith(ctx context.Context, query *dns.Msg, network string, server netip.AddrPort) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, s.options.Timeout)
	defer cancel()
	c, err := s.options.Network.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // what counts was read
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := &dns.Conn{Conn: c, UDPSize: dns.MaxMsgSize}
	if err := conn.WriteMsg(query); err != nil {
		return nil, err
	}
	for {
		m, err := conn.ReadMsg()
		if err != nil {
			return nil, err
		}
		if m.Response && m.Id == query.Id && len(m.Question) == 1 && m.Question[0] == query.Question[0] {
			return m, nil
		}
		if network == "tcp" {
			return nil, errMismatch
		}
		// On UDP it may be forged: the true answer may still come.
	}
}

// upstream returns the servers to forward to, never this one itself.
func (s *Server) upstream() []netip.AddrPort {
	all := s.options.Upstream
	if all == nil {
		all = s.files.servers()
	}
	own := *s.zones.Load()
	out := make([]netip.AddrPort, 0, len(all))
	for _, u := range all {
		if own[u.Addr()] == nil || u.Port() != s.options.Port {
			out = append(out, u)
		}
	}
	return out
}

// resolvConf is a resolv.conf file, read when it has changed.
type resolvConf struct {
	path string

	mu   sync.Mutex // guards what follows
	info os.FileInfo
	list []netip.AddrPort
}

func (r *resolvConf) servers() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	info, err := os.Stat(r.path)
	if err != nil {
		return r.list // it may be being replaced
	}
	if r.info != nil && os.SameFile(info, r.info) && info.ModTime().Equal(r.info.ModTime()) && info.Size() == r.info.Size() {
		return r.list
	}
	config, err := dns.ClientConfigFromFile(r.path)
	if err != nil {
		return r.list
	}
	r.info, r.list = info, nil
	for _, server := range config.Servers {
		if a, err := netip.ParseAddrPort(net.JoinHostPort(server, config.Port)); err == nil {
			r.list = append(r.list, a)
		}
	}
	return r.list
}
