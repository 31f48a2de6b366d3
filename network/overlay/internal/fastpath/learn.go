//go:build linux

package fastpath

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
)

// Run learns flows until ctx ends; it returns nil then.
func (p *Path) Run(ctx context.Context) error {
	if err := p.takeOver(); err != nil {
		p.log.Warn("connection tracking may forget connections early", "error", err)
	}
	sweep := time.NewTicker(p.opts.Idle / 2)
	defer sweep.Stop()
	defer context.AfterFunc(ctx, func() { _ = p.busy.Flush() })()
	var record ringbuf.Record
	var asked budget
	for ctx.Err() == nil {
		p.busy.SetDeadline(time.Now().Add(p.opts.Idle / 2))
		err := p.busy.ReadInto(&record)
		select {
		case <-sweep.C:
			p.extend()
			p.repair()
			p.Verify(0)
		default:
		}
		switch {
		case errors.Is(err, ringbuf.ErrFlushed), errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case errors.Is(err, ringbuf.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("fast path: read what tasks send by: %w", err)
		}
		var k key
		if !k.decode(record.RawSample) || !asked.spend(time.Now(), k.Interface) {
			continue // there is another call when it has sent as much again
		}
		if err := p.learn(k); err != nil {
			p.log.Debug("a flow stays on the slow path", "flow", k.tuple(), "error", err)
		}
	}
	p.Verify(0) // from here on nobody looks after what connection tracking knows
	return nil
}

// takeOver has connection tracking keep what an earlier process has loosened, for as
// long as any other connection: what was learnt is forgotten, and silent connections
// are not learnt again.
func (p *Path) takeOver() error {
	all, err := p.flows.List(0, 0)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range all {
		if f.Established && f.Liberal && !f.Loose {
			if err := p.flows.Loosen(f, p.established); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// extend says that this process is there: some time after it has last said so, all
// goes the kernel's own way, since nobody tells the programs what has changed.
func (p *Path) extend() {
	if err := p.kernel.Until.Set(uint64(clock() + away*int64(p.opts.Idle))); err != nil {
		p.log.Error("packets between nodes will go the slow way", "error", err)
	}
}

// away is for how long the programs go on without the process, in units of Idle.
const away = 3

// budget bounds how many flows a second are asked about, in all and for each task:
// one can begin as many as it likes, and is not to use up what is for others.
type budget struct {
	second int64
	spent  int
	each   map[uint32]int // by interface
}

const mostAsked, mostAskedEach = 5000, 1000

func (b *budget) spend(now time.Time, of uint32) bool {
	if s := now.Unix(); s != b.second {
		b.second, b.spent, b.each = s, 0, map[uint32]int{}
	}
	if b.spent == mostAsked || b.each[of] == mostAskedEach {
		return false
	}
	b.spent++
	b.each[of]++
	return true
}

// learn has the packets of a flow pass, if connection tracking knows it for an
// established one between a task and another node. The error says why not.
func (p *Path) learn(out key) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	name, port, err := p.portOf(out)
	if err != nil {
		return err
	}
	if used, err := p.ipsec.inUse(time.Now(), time.Second); err != nil || used {
		return cmp.Or(err, errors.New("an administrator has IPsec"))
	}
	old, again := p.known[out]
	if !again && p.held[name] >= p.opts.Most {
		return fmt.Errorf("its task has %d flows that are known", p.held[name])
	}
	sent := out.tuple()
	entry, err := p.flows.Get(sent)
	if err != nil {
		return err
	}
	far, err := farSide(entry, sent)
	if err != nil {
		return err
	}
	goes := far.Back() // what the task sends, as the other node sees it
	if goes.Src.Addr() != sent.Src.Addr() || !within(port.Whole, goes.Dst.Addr()) || within(port.Own, goes.Dst.Addr()) {
		return fmt.Errorf("it goes to %v by %v, and not to another node of the network", goes.Dst, goes.Src)
	}
	translated := uint32(0)
	if goes != sent {
		translated = 1
	}
	in := keyOf(0, far)
	if again && old.in == in && p.has(out) && p.has(in) {
		return nil
	}
	if again && old.in != in {
		p.forget(out) // the ports were used for a flow that is translated otherwise
	}
	// Before it misses segments. That it has seen others since, and expects what
	// follows them, is for the next look to mend.
	if sent.Protocol == unix.IPPROTO_TCP {
		if err := p.flows.Loosen(entry, p.established); err != nil {
			return err
		}
	}
	now := clock()
	flowOut := flow{Key: out, Translated: translated, Interface: uint32(port.Bridge), Checked: uint64(now)}
	flowOut.set(goes)
	flowIn := flow{
		Key: in, Translated: translated, Interface: uint32(port.Link), Checked: uint64(now),
		ToMAC: [6]byte(port.MAC), FromMAC: [6]byte(port.BridgeMAC),
	}
	flowIn.set(sent.Back())
	if _, again := p.known[out]; !again {
		p.held[name]++
	}
	p.known[out] = pair{port: name, sent: sent, far: far, in: in, learnt: now}
	err = p.kernel.Flows.Put(in, flowIn)
	if err == nil {
		err = p.kernel.Flows.Put(out, flowOut)
	}
	if err != nil {
		p.forget(out)
		return fmt.Errorf("write the flow: %w", err)
	}
	if err := gone(p.kernel.Sent.Delete(out)); err != nil {
		p.log.Debug("packets of a flow that is learnt are still counted", "flow", sent, "error", err)
	}
	return nil
}

// has reports whether the programs know one direction of a flow.
func (p *Path) has(k key) bool {
	var f flow
	return p.kernel.Flows.Lookup(k, &f) == nil
}

// portOf finds the port that a key came by. What has not the address of its task
// is not the task's.
func (p *Path) portOf(k key) (string, Port, error) {
	for name, port := range p.ports {
		if port.Link == int(k.Interface) {
			if !slices.Contains(port.Addresses, k.tuple().Src.Addr()) {
				return "", Port{}, errors.New("its source is no address of the task's")
			}
			return name, port, nil
		}
	}
	return "", Port{}, errors.New("its task is gone")
}

func (f *flow) set(t conntrack.Tuple) {
	f.From, f.To, f.FromPort, f.ToPort = t.Src.Addr().As16(), t.Dst.Addr().As16(), portBytes(t.Src), portBytes(t.Dst)
}

// farSide returns what the other end of an entry sends, of which one end sends a
// tuple. The error says why its packets must all go by connection tracking.
func farSide(f conntrack.Flow, sent conntrack.Tuple) (conntrack.Tuple, error) {
	const needed, unfit = conntrack.Confirmed | conntrack.SeenReply, conntrack.SequenceAdjust | conntrack.Helper | conntrack.Dying
	switch {
	case f.Status&needed != needed:
		return conntrack.Tuple{}, errors.New("it has not been answered")
	case f.Status&unfit != 0:
		return conntrack.Tuple{}, errors.New("connection tracking looks into it, or ends it")
	case sent.Protocol == unix.IPPROTO_TCP && !f.Established:
		return conntrack.Tuple{}, errors.New("the connection is not open both ways")
	case f.Original == sent:
		return f.Reply, nil
	case f.Reply == sent:
		return f.Original, nil
	}
	return conntrack.Tuple{}, errors.New("connection tracking knows it otherwise")
}

func within(ranges []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(addr) })
}
