package networktest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/network/memory"
)

func openNode(testing.TB) Node { return nodeOf(memory.New(memory.Options{})) }

func nodeOf(m *memory.Node) Node {
	return Node{Driver: m, Namespaces: m, Reopen: func(t testing.TB) Node {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		return nodeOf(m.Reopen())
	}}
}

func openTraffic(testing.TB) Traffic { return trafficOf(memory.New(memory.Options{})) }

func trafficOf(m *memory.Node) Traffic {
	client := netip.MustParseAddr("10.213.0.200")
	return Traffic{
		Balancer: m,
		Virtual:  [2]netip.Addr{netip.MustParseAddr("10.213.1.1"), netip.MustParseAddr("10.213.1.2")},
		Node:     netip.MustParseAddr("10.213.0.1"),
		Servers:  [3]netip.AddrPort{netip.MustParseAddrPort("10.213.0.2:80"), netip.MustParseAddrPort("10.213.0.3:80"), netip.MustParseAddrPort("10.213.0.4:80")},
		Connect: func(_ context.Context, p network.Protocol, to netip.AddrPort) (netip.AddrPort, error) {
			return m.Dial(p, client, to)
		},
	}
}

func TestMemoryDriver(t *testing.T)   { TestDriver(t, openNode) }
func TestMemoryBalancer(t *testing.T) { TestBalancer(t, openTraffic) }

// trial is a testing.TB that notes failure instead of failing.
type trial struct {
	testing.TB
	failed []string
}

func (t *trial) Helper() {}
func (t *trial) Errorf(format string, args ...any) {
	t.failed = append(t.failed, fmt.Sprintf(format, args...))
}
func (t *trial) Fatal(args ...any) { t.Errorf("%s", fmt.Sprint(args...)); runtime.Goexit() }
func (t *trial) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

// fails runs a case and reports whether it failed.
func fails(t *testing.T, run func(t testing.TB)) bool {
	tr := &trial{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(tr)
	}()
	<-done
	return len(tr.failed) > 0
}

// wrong is a node with one mistake.
type wrong struct {
	*memory.Node
	mistake string
	rules   []network.Rule // last programmed
	made    atomic.Int64
}

func (w *wrong) Ensure(ctx context.Context, n network.Network) error {
	switch w.mistake {
	case "ignores contexts":
		ctx = context.Background()
	case "accepts any network":
		if err := w.Node.Ensure(ctx, n); err != nil && ctx.Err() == nil {
			return nil
		}
	case "forgets attachments when ensured again":
		all, _ := w.Attachments(context.Background())
		for _, a := range all {
			_ = w.Node.Detach(context.Background(), a)
		}
	case "never changes a network":
		if strings.HasPrefix(fmt.Sprint(w.Node.Ensure(ctx, n)), "network") {
			break
		}
		return w.Node.Ensure(ctx, front())
	}
	return w.Node.Ensure(ctx, n)
}

func (w *wrong) Remove(ctx context.Context, name string) error {
	if w.mistake == "removes networks in use" {
		all, _ := w.Attachments(ctx)
		for _, a := range all {
			_ = w.Node.Detach(ctx, a)
		}
	}
	return w.Node.Remove(ctx, name)
}

func (w *wrong) Attach(ctx context.Context, a network.Attachment) (network.Interface, error) {
	switch w.mistake {
	case "gives a new address each time":
		_ = w.Node.Detach(ctx, a)
	case "ignores requested addresses":
		a.Addresses = nil
	case "gives one address to two tasks":
		got, err := w.Node.Attach(ctx, a)
		if err == nil && len(got.Addresses) > 0 {
			got.Addresses[0] = netip.MustParsePrefix("10.213.0.9/24")
		}
		return got, err
	case "gives the gateway's address":
		got, err := w.Node.Attach(ctx, a)
		if err == nil {
			got.Addresses[0] = netip.PrefixFrom(got.Gateways[0], got.Addresses[0].Bits())
		}
		return got, err
	case "leaves one family out":
		got, err := w.Node.Attach(ctx, a)
		if err == nil {
			got.Addresses = got.Addresses[:1]
		}
		return got, err
	case "needs no namespace":
		if path, err := w.Node.Create(ctx, "anything", nil); err == nil && strings.HasSuffix(a.Namespace, "not-there") {
			a.Namespace = path
		}
	}
	return w.Node.Attach(ctx, a)
}

func (w *wrong) Detach(ctx context.Context, a network.Attachment) error {
	switch w.mistake {
	case "frees nothing":
		return ctx.Err()
	case "fails to detach what is gone":
		all, _ := w.Attachments(ctx)
		if !slices.ContainsFunc(all, func(b network.Attachment) bool { return a.Task == b.Task }) {
			return errors.New("no such attachment")
		}
	}
	return w.Node.Detach(ctx, a)
}

func (w *wrong) Attachments(ctx context.Context) ([]network.Attachment, error) {
	all, err := w.Node.Attachments(ctx)
	if w.mistake == "lists attachments in disorder" {
		slices.Reverse(all)
	}
	return all, err
}

func (w *wrong) Create(ctx context.Context, id string, sysctls map[string]string) (string, error) {
	switch w.mistake {
	case "makes a namespace anew":
		_ = w.Node.Delete(ctx, id)
		path, err := w.Node.Create(ctx, id, sysctls)
		made := int(w.made.Add(1))
		return path + strings.Repeat("+", made), err
	case "takes any sysctl":
		sysctls = nil
	}
	return w.Node.Create(ctx, id, sysctls)
}

func (w *wrong) Delete(ctx context.Context, id string) error {
	if w.mistake == "keeps namespaces" && network.ValidateNamespace(id, nil) == nil {
		return ctx.Err()
	}
	return w.Node.Delete(ctx, id)
}

// reopened is a restart that forgets.
func (w *wrong) reopened() *wrong {
	m := w.Node.Reopen()
	if w.mistake == "forgets everything at a restart" {
		m = memory.New(memory.Options{})
	}
	return &wrong{Node: m, mistake: w.mistake}
}

func (w *wrong) node() Node {
	return Node{Driver: w, Namespaces: w, Reopen: func(testing.TB) Node { return w.reopened().node() }}
}

func (w *wrong) Program(ctx context.Context, rules []network.Rule) error {
	before := w.rules
	w.rules = rules
	switch w.mistake {
	case "keeps withdrawn endpoints":
		canonical, err := network.Canonical(rules)
		if err != nil {
			return err
		}
		for i, r := range canonical {
			for _, old := range before {
				if old.Frontend() == r.Frontend() && len(r.Endpoints) > 0 {
					canonical[i].Endpoints = append(canonical[i].Endpoints, old.Endpoints...)
				}
			}
		}
		return w.Node.Program(ctx, canonical)
	case "keeps rules that are gone":
		if len(rules) == 0 {
			return ctx.Err()
		}
	case "lets the last of two claims win":
		byFrontend := map[string]network.Rule{}
		for _, r := range rules {
			byFrontend[r.Frontend()] = r
		}
		rules = nil
		for _, r := range byFrontend {
			rules = append(rules, r)
		}
	case "applies the part before a conflict":
		if _, err := network.Canonical(rules); err != nil {
			_ = w.Node.Program(ctx, rules[:1])
			return err
		}
	case "uses the first endpoint alone":
		rules = slices.Clone(rules)
		for i := range rules {
			rules[i].Endpoints = rules[i].Endpoints[:min(1, len(rules[i].Endpoints))]
		}
	case "knows no affinity":
		rules = slices.Clone(rules)
		for i := range rules {
			rules[i].SourceAffinity = false
		}
	case "takes every protocol for TCP":
		rules = slices.Clone(rules)
		for i := range rules {
			rules[i].Protocol = network.TCP
		}
	case "publishes on every address":
		rules = slices.Clone(rules)
		for i := range rules {
			rules[i].HostIP = netip.Addr{}
		}
	case "mixes frontends":
		rules = slices.Clone(rules)
		for i := range rules {
			rules[i].Endpoints = append(slices.Clone(rules[i].Endpoints), rules[0].Endpoints...)
		}
	}
	return w.Node.Program(ctx, rules)
}

// Every mistake is caught by a case: a suite that lets one through says less
// than it seems to.
func TestMistakesAreCaught(t *testing.T) {
	catches := map[string]int{} // by case
	for _, mistake := range []string{
		"ignores contexts", "accepts any network", "forgets attachments when ensured again", "never changes a network",
		"removes networks in use", "gives a new address each time", "ignores requested addresses",
		"gives one address to two tasks", "gives the gateway's address", "leaves one family out", "needs no namespace",
		"frees nothing", "fails to detach what is gone", "lists attachments in disorder", "makes a namespace anew",
		"takes any sysctl", "keeps namespaces", "forgets everything at a restart",
	} {
		caught := ""
		for _, c := range driverCases {
			w := &wrong{Node: memory.New(memory.Options{}), mistake: mistake}
			if fails(t, func(t testing.TB) { c.run(t, w.node()) }) {
				caught = c.name
				catches[c.name]++
			}
		}
		if caught == "" {
			t.Errorf("no case of TestDriver catches a driver that %s", mistake)
		}
	}
	for _, mistake := range []string{
		"keeps withdrawn endpoints", "keeps rules that are gone", "lets the last of two claims win",
		"applies the part before a conflict", "uses the first endpoint alone", "knows no affinity",
		"takes every protocol for TCP", "publishes on every address", "mixes frontends",
	} {
		caught := ""
		for _, c := range balancerCases {
			w := &wrong{Node: memory.New(memory.Options{}), mistake: mistake}
			if fails(t, func(t testing.TB) {
				tr := trafficOf(w.Node)
				tr.Balancer = w
				c.run(t, tr)
			}) {
				caught = c.name
				catches[c.name]++
			}
		}
		if caught == "" {
			t.Errorf("no case of TestBalancer catches a balancer that %s", mistake)
		}
	}
	// A case that none of them fails says nothing, as far as is known.
	for _, c := range driverCases {
		if catches[c.name] == 0 {
			t.Errorf("no mistake of a driver is planted that fails %q", c.name)
		}
	}
	for _, c := range balancerCases {
		if catches[c.name] == 0 {
			t.Errorf("no mistake of a balancer is planted that fails %q", c.name)
		}
	}
	// And a node without a mistake passes, through the same wrapper.
	for _, c := range driverCases {
		w := &wrong{Node: memory.New(memory.Options{})}
		if fails(t, func(t testing.TB) { c.run(t, w.node()) }) {
			t.Errorf("a correct driver fails %q", c.name)
		}
	}
}
