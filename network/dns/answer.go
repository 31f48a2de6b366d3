package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// verdict is what becomes of a question.
type verdict int

const (
	drop    verdict = iota // not worth an answer
	reply                  // answered here
	forward                // for the upstream servers
)

// answer decides about a question from a client. It reads its arguments only:
// the reply is made anew.
func (t *table) answer(req *dns.Msg, client netip.Addr, ttl uint32) (*dns.Msg, verdict) {
	if req.Response {
		return nil, drop // answering answers makes loops
	}
	m := new(dns.Msg)
	m.SetReply(req)
	m.RecursionAvailable = !t.Internal
	if opt := req.IsEdns0(); opt != nil {
		m.SetEdns0(maxUDP, false)
		if opt.Version() != 0 {
			m.Rcode = dns.RcodeBadVers
			return m, reply
		}
	}
	switch {
	case !t.allows(client):
		m.Rcode = dns.RcodeRefused
		return m, reply
	case req.Opcode != dns.OpcodeQuery:
		m.Rcode = dns.RcodeNotImplemented
		return m, reply
	case len(req.Question) != 1:
		m.Rcode = dns.RcodeFormatError
		return m, reply
	case req.Question[0].Qclass != dns.ClassINET:
		m.Rcode = dns.RcodeRefused
		return m, reply
	}
	q := req.Question[0]
	name := strings.ToLower(q.Name)
	if r := t.find(name, client); r != nil {
		m.Authoritative = true
		t.fill(m, q, r, ttl)
		return m, reply
	}
	if a, ok := reverse(name); ok && t.has(a) {
		m.Authoritative = true
		target, known := t.ptr[a]
		switch {
		case !known:
			t.negative(m, name, dns.RcodeNameError, ttl)
		case q.Qtype == dns.TypePTR:
			m.Answer = []dns.RR{&dns.PTR{Hdr: header(q.Name, dns.TypePTR, ttl), Ptr: target}}
		default:
			t.negative(m, name, dns.RcodeSuccess, ttl)
		}
		return m, reply
	}
	switch {
	case t.parents[name]: // it exists, without records (RFC 8020)
		m.Authoritative = true
		t.negative(m, name, dns.RcodeSuccess, ttl)
	case dns.IsSubDomain(t.domain, name), dns.CountLabel(name) == 1:
		m.Authoritative = true
		t.negative(m, name, dns.RcodeNameError, ttl)
	case t.Internal:
		m.Rcode = dns.RcodeRefused
	default:
		return nil, forward
	}
	return m, reply
}

// fill answers about a name that exists.
func (t *table) fill(m *dns.Msg, q dns.Question, r *records, ttl uint32) {
	addresses := r.addresses
	if r.shuffle {
		addresses = slices.Clone(addresses)
		rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	}
	switch q.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		for _, a := range addresses {
			if a.Is4() == (q.Qtype == dns.TypeA) {
				m.Answer = append(m.Answer, addressRecord(q.Name, a, ttl))
			}
		}
	case dns.TypeSRV:
		for _, s := range r.srv {
			record := *s
			record.Hdr = header(q.Name, dns.TypeSRV, ttl)
			m.Answer = append(m.Answer, &record)
			for _, a := range t.full[s.Target].addresses {
				m.Extra = append(m.Extra, addressRecord(s.Target, a, ttl))
			}
		}
	case dns.TypeANY:
		// RFC 8482: no answer to ANY has to be complete.
		m.Answer = []dns.RR{&dns.HINFO{Hdr: header(q.Name, dns.TypeHINFO, ttl), Cpu: "RFC8482"}}
	}
	if len(m.Answer) == 0 {
		t.negative(m, strings.ToLower(q.Name), dns.RcodeSuccess, ttl)
	}
}

// negative says that there is no such name, or no such record of it, and for
// how long that may be believed: the SOA record's last field (RFC 2308).
func (t *table) negative(m *dns.Msg, name string, rcode int, ttl uint32) {
	m.Rcode = rcode
	zone := t.domain
	if !dns.IsSubDomain(t.domain, name) {
		labels := dns.SplitDomainName(name)
		if len(labels) == 0 {
			zone = "."
		} else {
			zone = labels[len(labels)-1] + "."
		}
	}
	m.Ns = []dns.RR{&dns.SOA{
		Hdr: header(zone, dns.TypeSOA, ttl), Ns: "ns." + t.domain, Mbox: "hostmaster." + t.domain,
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
	}}
}

func header(name string, kind uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

func addressRecord(name string, a netip.Addr, ttl uint32) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA, ttl), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA, ttl), AAAA: a.AsSlice()}
}

// maxUDP is the size of UDP messages that passes nearly everywhere without
// being fragmented (DNS flag day 2020).
const maxUDP = 1232

// respond reads a message and answers it. With verdict forward the request is
// returned for the upstream servers.
func (t *table) respond(packet []byte, client netip.Addr, ttl uint32, udp bool) (out []byte, req *dns.Msg, v verdict) {
	req = new(dns.Msg)
	if err := req.Unpack(packet); err != nil {
		// Without a header there is nobody to answer to.
		if len(packet) < 12 || req.Response || packet[2]&0x80 != 0 || !t.allows(client) {
			return nil, nil, drop
		}
		m := new(dns.Msg)
		m.Id = uint16(packet[0])<<8 | uint16(packet[1])
		m.Response, m.Rcode = true, dns.RcodeFormatError
		out, err = m.Pack()
		return out, nil, verdictOf(err)
	}
	m, v := t.answer(req, client, ttl)
	if v != reply {
		return nil, req, v
	}
	out, err := pack(m, req, udp)
	return out, req, verdictOf(err)
}

func verdictOf(err error) verdict {
	if err != nil {
		return drop
	}
	return reply
}

// pack encodes an answer, cut to what the asker can take.
func pack(m, req *dns.Msg, udp bool) ([]byte, error) {
	m.Compress = true
	size := dns.MaxMsgSize
	if udp {
		size = dns.MinMsgSize
		if opt := req.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
		}
	}
	m.Truncate(size)
	return m.Pack()
}
