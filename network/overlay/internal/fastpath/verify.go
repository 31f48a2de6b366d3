//go:build linux

package fastpath

import (
	"errors"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// forget has a flow's packets go the slow way. Where the kernel does not do so the
// flow stays known, to be forgotten when it is looked at again. p.mu is held.
func (p *Path) forget(out key) {
	f, known := p.known[out]
	deleted := true
	for _, k := range []key{out, f.in} {
		if err := gone(p.kernel.Flows.Delete(k)); err != nil {
			p.log.Error("cannot take a flow from the fast path", "flow", k.tuple(), "error", err)
			deleted = false
		}
	}
	if known && deleted {
		delete(p.known, out)
		if p.held[f.port]--; p.held[f.port] == 0 {
			delete(p.held, f.port)
		}
	}
}

// Verify forgets flows that connection tracking no longer knows, or knows
// otherwise, and those that are no longer known in both directions; of one
// protocol, or of both when 0. Where IPsec has come up it forgets all.
func (p *Path) Verify(protocol uint8) {
	p.mu.Lock()
	before := p.ipsec.used
	used, err := p.ipsec.inUse(time.Now(), 0)
	if err != nil {
		p.log.Error("packets between nodes go the slow way", "error", err)
	} else if used && !before {
		p.log.Warn("packets between nodes go the slow way: the node has IPsec")
	}
	if used {
		for k := range p.known {
			p.forget(k)
		}
	}
	keys := make([]key, 0, len(p.known))
	for k := range p.known {
		if protocol == 0 || k.Protocol == protocol {
			keys = append(keys, k)
		}
	}
	p.mu.Unlock()
	for _, k := range keys {
		p.mu.Lock() // for each: others wait as long as one takes
		if f, ok := p.known[k]; ok {
			if _, there := p.ports[f.port]; !there || !p.holds(k, f) {
				p.forget(k)
			}
		}
		p.mu.Unlock()
	}
}

// holds reports whether a flow is as it was learnt, and has connection tracking
// keep it for as long as it should. What cannot be asked holds. p.mu is held.
func (p *Path) holds(out key, f pair) bool {
	now := clock()
	sent, sentKnown := p.seen(out, now)
	answered, answeredKnown := p.seen(f.in, now)
	known := sentKnown && answeredKnown && now-min(sent, answered) <= 2*int64(p.opts.Idle)
	entry, err := p.flows.Get(f.sent)
	if err != nil {
		return known && !errors.Is(err, unix.ENOENT)
	}
	far, err := farSide(entry, f.sent)
	if err != nil || far != f.far {
		return false
	}
	if out.Protocol != unix.IPPROTO_TCP {
		return known
	}
	back := f.unanswered != 0 && !(answeredKnown && answered == f.unanswered)
	if back {
		f.unanswered = 0
		p.known[out] = f
	}
	switch {
	case f.unanswered != 0:
		return true // to hear when the other end says something after all
	case known && answered > f.learnt && sent-answered > 2*int64(p.opts.Refresh):
		if err := p.flows.Doubt(entry); err != nil {
			p.log.Warn("connection tracking may keep a connection to what is gone", "flow", f.sent, "error", err)
			break
		}
		f.unanswered = answered
		p.known[out] = f
	case !entry.Loose && (known || back):
		// What connection tracking has seen since may have it think of data that
		// is not acknowledged, and the flow may be silent from here on.
		if err := p.flows.Loosen(entry, p.established); errors.Is(err, unix.ENOENT) {
			return false
		} else if err != nil {
			p.log.Warn("connection tracking may forget a connection early", "flow", f.sent, "error", err)
		}
	}
	return known
}

// seen returns when a packet of one direction of a flow last went by connection
// tracking, or now where that cannot be asked, and whether the programs know the
// direction: they forget what is idle for long.
func (p *Path) seen(k key, now int64) (at int64, known bool) {
	var v flow
	if err := p.kernel.Flows.Lookup(k, &v); err != nil {
		return now, !errors.Is(err, ebpf.ErrKeyNotExist)
	}
	return int64(v.Checked), true
}
