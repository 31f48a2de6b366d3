package networktest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/orchestrate-go/orchestrate/network"
)

// Node is what TestDriver tests.
type Node struct {
	Driver     network.Driver
	Namespaces network.Namespaces
	// Reopen returns the node as a program sees it that restarts, after the
	// old one was closed or killed. Nil where nothing is kept.
	Reopen func(t testing.TB) Node
}

// driverCase is one property that every driver has.
type driverCase struct {
	name string
	run  func(t testing.TB, n Node)
}

// TestDriver runs the suite for drivers; open returns a node without networks
// for each case.
func TestDriver(t *testing.T, open func(t testing.TB) Node) {
	for _, c := range driverCases {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

func prefixes(s ...string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(s))
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// front and small are the networks that the cases use. Small has room for
// five tasks.
func front() network.Network {
	return network.Network{Name: "front", Subnets: prefixes("10.213.0.0/24", "fd00:213::/64"), Virtual: prefixes("10.213.1.0/24")}
}

func small() network.Network {
	return network.Network{Name: "small", Subnets: prefixes("10.213.2.0/29")}
}

var driverCases = []driverCase{
	{"an attachment has an address of each subnet", func(t testing.TB, n Node) {
		ensure(t, n, front())
		got := attach(t, n, "front", "a")
		if got.Name != "eth0" || got.MAC == "" {
			t.Errorf("got interface %+v, want it named eth0 and with a MAC", got)
		}
		if len(got.Addresses) != 2 {
			t.Fatalf("got addresses %v, want one of each subnet of %v", got.Addresses, front().Subnets)
		}
		for i, subnet := range front().Subnets {
			p := got.Addresses[i]
			if p.Masked() != subnet {
				t.Errorf("address %d is %s, want one of %s with its length", i, p, subnet)
			}
			if p.Addr() == subnet.Addr() || p.Addr() == front().Gateways()[i] || p.Addr() == network.Broadcast(subnet) && p.Addr().Is4() {
				t.Errorf("address %d is %s, which is the network's, the gateway's or broadcast", i, p)
			}
		}
		if !slices.Equal(got.Gateways, front().Gateways()) {
			t.Errorf("got gateways %v, want %v", got.Gateways, front().Gateways())
		}
	}},
	{"the same attachment again is the same", func(t testing.TB, n Node) {
		ensure(t, n, front())
		first := attach(t, n, "front", "a")
		ensure(t, n, front())
		if again := attach(t, n, "front", "a"); !reflect.DeepEqual(again, first) {
			t.Errorf("attached again: got %+v, want %+v as before", again, first)
		}
		if all := attachments(t, n); len(all) != 1 {
			t.Errorf("attached twice: Attachments = %v, want one", all)
		}
	}},
	{"no two tasks share an address, however many attach at once", func(t testing.TB, n Node) {
		ensure(t, n, front())
		const tasks = 40
		results := make([]network.Interface, tasks)
		errs := make([]error, tasks)
		var wg sync.WaitGroup
		for i := range tasks {
			wg.Go(func() {
				id := fmt.Sprintf("t%d", i)
				path, err := n.Namespaces.Create(t.Context(), id, nil)
				if err == nil {
					results[i], err = n.Driver.Attach(t.Context(), attachment("front", id, path))
				}
				errs[i] = err
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		owner := map[netip.Addr]int{}
		for i, r := range results {
			for _, p := range r.Addresses {
				if other, taken := owner[p.Addr()]; taken {
					t.Errorf("%s is of tasks %d and %d", p.Addr(), other, i)
				}
				owner[p.Addr()] = i
			}
		}
		if len(owner) != 2*tasks {
			t.Errorf("%d tasks have %d addresses, want two each", tasks, len(owner))
		}
	}},
	{"addresses are kept over a restart", func(t testing.TB, n Node) {
		if n.Reopen == nil {
			t.Skip("this driver keeps nothing")
		}
		ensure(t, n, front())
		first := attach(t, n, "front", "a")
		before := attachments(t, n)
		n = n.Reopen(t)
		if after := attachments(t, n); !reflect.DeepEqual(after, before) {
			t.Errorf("Attachments after a restart = %+v, want %+v", after, before)
		}
		ensure(t, n, front())
		other := attach(t, n, "front", "b")
		for _, p := range other.Addresses {
			if slices.Contains(first.Addresses, p) {
				t.Errorf("%s was handed out again while its task is attached", p)
			}
		}
		if again := attach(t, n, "front", "a"); !reflect.DeepEqual(again, first) {
			t.Errorf("attached again after a restart: got %+v, want %+v", again, first)
		}
	}},
	{"detaching frees the addresses, and is nothing the second time", func(t testing.TB, n Node) {
		ensure(t, n, small())
		var last network.Attachment
		for i := range 12 { // more than there is room for at one time
			id := fmt.Sprintf("t%d", i)
			last = attachment("small", id, create(t, n, id))
			if _, err := n.Driver.Attach(t.Context(), last); err != nil {
				t.Fatalf("attach number %d = %v; are addresses freed?", i+1, err)
			}
			detach(t, n, last)
		}
		detach(t, n, last)
		detach(t, n, attachment("small", "never", "/nowhere"))
		detach(t, n, attachment("nothing", "never", "/nowhere"))
		if all := attachments(t, n); len(all) != 0 {
			t.Errorf("Attachments = %v, want none", all)
		}
	}},
	{"detaching works when the namespace is gone", func(t testing.TB, n Node) {
		ensure(t, n, small())
		a := attachment("small", "a", create(t, n, "a"))
		if _, err := n.Driver.Attach(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		if err := n.Namespaces.Delete(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if all := attachments(t, n); len(all) != 1 {
			t.Errorf("Attachments with the namespace gone = %v, want the one that is to be detached", all)
		}
		detach(t, n, a)
		if all := attachments(t, n); len(all) != 0 {
			t.Errorf("Attachments = %v, want none", all)
		}
	}},
	{"an address just freed is not reused at once", func(t testing.TB, n Node) {
		ensure(t, n, front())
		a := attachment("front", "a", create(t, n, "a"))
		first, err := n.Driver.Attach(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		detach(t, n, a)
		if second := attach(t, n, "front", "b"); second.Addresses[0] == first.Addresses[0] {
			t.Errorf("%s went to the next task at once; connections to the old one may still be open", first.Addresses[0])
		}
	}},
	{"a full network is exhausted, and recovers", func(t testing.TB, n Node) {
		ensure(t, n, small())
		for i := range 5 {
			attach(t, n, "small", fmt.Sprintf("t%d", i))
		}
		extra := attachment("small", "extra", create(t, n, "extra"))
		if _, err := n.Driver.Attach(t.Context(), extra); !errors.Is(err, network.ErrExhausted) {
			t.Errorf("a sixth task in a /29 = %v, want ErrExhausted", err)
		}
		if all := attachments(t, n); len(all) != 5 {
			t.Errorf("a failed Attach left %d attachments, want the 5 of before", len(all))
		}
		detach(t, n, attachment("small", "t2", ""))
		if _, err := n.Driver.Attach(t.Context(), extra); err != nil {
			t.Errorf("Attach after another task left = %v", err)
		}
	}},
	{"requested addresses are given, or refused as taken", func(t testing.TB, n Node) {
		ensure(t, n, front())
		a := attachment("front", "a", create(t, n, "a"))
		a.Addresses = []netip.Addr{netip.MustParseAddr("10.213.0.77")}
		got, err := n.Driver.Attach(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		if got.Addresses[0].Addr() != a.Addresses[0] || len(got.Addresses) != 2 {
			t.Errorf("asked for %v: got %v, want it and any of the other subnet", a.Addresses, got.Addresses)
		}
		b := attachment("front", "b", create(t, n, "b"))
		b.Addresses = a.Addresses
		var taken *network.AddressError
		if _, err := n.Driver.Attach(t.Context(), b); !errors.As(err, &taken) || !taken.Taken || taken.Address != a.Addresses[0] {
			t.Errorf("asked for a taken address: %v, want an *AddressError that says it is taken", err)
		}
		for _, bad := range []string{"10.213.0.0", "10.213.0.1", "10.213.0.255"} {
			b.Addresses = []netip.Addr{netip.MustParseAddr(bad)}
			if _, err := n.Driver.Attach(t.Context(), b); !errors.As(err, &taken) || taken.Taken {
				t.Errorf("asked for %s: %v, want an *AddressError", bad, err)
			}
		}
		b.Addresses = []netip.Addr{netip.MustParseAddr("10.99.0.1")}
		wantConfig(t, "asked for an address outside", errOf(n.Driver.Attach(t.Context(), b)), "addresses")
		if all := attachments(t, n); len(all) != 1 {
			t.Errorf("refused attachments left something: %v", all)
		}
	}},
	{"attaching needs a network and a namespace", func(t testing.TB, n Node) {
		path := create(t, n, "a")
		if _, err := n.Driver.Attach(t.Context(), attachment("front", "a", path)); !errors.Is(err, network.ErrNoNetwork) {
			t.Errorf("attach to a network that was not ensured = %v, want ErrNoNetwork", err)
		}
		ensure(t, n, front())
		if _, err := n.Driver.Attach(t.Context(), attachment("front", "b", path+"-not-there")); !errors.Is(err, network.ErrNoNamespace) {
			t.Errorf("attach a namespace that is not there = %v, want ErrNoNamespace", err)
		}
		bad := attachment("front", "a", path)
		bad.Interface = "an-interface-name-too-long"
		wantConfig(t, "attach with a bad interface name", errOf(n.Driver.Attach(t.Context(), bad)), "interface")
		if all := attachments(t, n); len(all) != 0 {
			t.Errorf("failed attachments left something: %v", all)
		}
	}},
	{"a task can be on two networks", func(t testing.TB, n Node) {
		ensure(t, n, front())
		ensure(t, n, small())
		path := create(t, n, "a")
		for i, name := range []string{"front", "small"} {
			a := attachment(name, "a", path)
			a.Interface, a.Default = fmt.Sprintf("eth%d", i), i == 0
			if _, err := n.Driver.Attach(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		}
		all := attachments(t, n)
		if len(all) != 2 || all[0].Network != "front" || !all[0].Default || all[1].Network != "small" || all[1].Interface != "eth1" {
			t.Errorf("Attachments = %+v, want both, sorted by network, as they were asked for", all)
		}
	}},
	{"a network in use is not removed", func(t testing.TB, n Node) {
		ensure(t, n, front())
		a := attachment("front", "a", create(t, n, "a"))
		if _, err := n.Driver.Attach(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		var inUse *network.InUseError
		if err := n.Driver.Remove(t.Context(), "front"); !errors.As(err, &inUse) || !slices.Equal(inUse.Tasks, []string{"a"}) {
			t.Errorf("Remove with a task attached = %v, want an *InUseError naming it", err)
		}
		detach(t, n, a)
		for range 2 {
			if err := n.Driver.Remove(t.Context(), "front"); err != nil {
				t.Errorf("Remove = %v; of one that is gone it is no error", err)
			}
		}
		if _, err := n.Driver.Attach(t.Context(), a); !errors.Is(err, network.ErrNoNetwork) {
			t.Errorf("attach to a removed network = %v, want ErrNoNetwork", err)
		}
	}},
	{"networks that make no sense are refused", func(t testing.TB, n Node) {
		ensure(t, n, front())
		for field, bad := range map[string]network.Network{
			"name":    {Subnets: prefixes("10.213.9.0/24")},
			"subnets": {Name: "bad", Subnets: prefixes("10.213.9.0/31")},
			"virtual": {Name: "bad", Subnets: prefixes("10.213.9.0/24"), Virtual: prefixes("10.213.9.128/25")},
			"mtu":     {Name: "bad", Subnets: prefixes("10.213.9.0/24"), MTU: 1},
		} {
			wantConfig(t, "Ensure", n.Driver.Ensure(t.Context(), bad), field)
		}
		for _, overlap := range []string{"10.213.0.128/25", "10.213.0.0/16", "10.213.1.0/26"} {
			wantConfig(t, "Ensure of a network that overlaps another", n.Driver.Ensure(t.Context(), network.Network{Name: "bad", Subnets: prefixes(overlap)}), "subnets")
		}
		if _, err := n.Driver.Attach(t.Context(), attachment("bad", "a", create(t, n, "a"))); !errors.Is(err, network.ErrNoNetwork) {
			t.Errorf("attach to a refused network = %v, want ErrNoNetwork", err)
		}
	}},
	{"a network changes where that breaks nothing", func(t testing.TB, n Node) {
		ensure(t, n, front())
		changed := front()
		changed.Subnets = prefixes("10.213.8.0/24")
		changed.Virtual = nil
		ensure(t, n, changed) // nobody is attached
		got := attach(t, n, "front", "a")
		if !changed.Subnets[0].Contains(got.Addresses[0].Addr()) {
			t.Errorf("after the change: got %v, want an address of %v", got.Addresses, changed.Subnets)
		}
		wantConfig(t, "a change of the subnets with a task attached", n.Driver.Ensure(t.Context(), front()), "subnets")
		changed.MTU, changed.Internal = 1400, true
		ensure(t, n, changed)
		if again := attach(t, n, "front", "a"); !reflect.DeepEqual(again, got) {
			t.Errorf("after a change of the MTU: got %+v, want %+v as before", again, got)
		}
	}},
	{"namespaces are made, kept, listed and deleted", func(t testing.TB, n Node) {
		if got := list(t, n); len(got) != 0 {
			t.Fatalf("List of a new node = %v, want none", got)
		}
		path := create(t, n, "b")
		if again := create(t, n, "b"); again != path {
			t.Errorf("Create again = %q, want %q", again, path)
		}
		create(t, n, "a")
		if got := list(t, n); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("List = %v, want [a b]", got)
		}
		if n.Reopen != nil {
			n = n.Reopen(t)
			if got := list(t, n); !slices.Equal(got, []string{"a", "b"}) {
				t.Errorf("List after a restart = %v, want [a b]", got)
			}
			if again := create(t, n, "b"); again != path {
				t.Errorf("Create after a restart = %q, want %q", again, path)
			}
		}
		for range 2 {
			if err := n.Namespaces.Delete(t.Context(), "a"); err != nil {
				t.Errorf("Delete = %v; of one that is gone it is no error", err)
			}
		}
		if got := list(t, n); !slices.Equal(got, []string{"b"}) {
			t.Errorf("List after Delete = %v, want [b]", got)
		}
		for _, id := range []string{"", "..", "a/b"} {
			wantConfig(t, fmt.Sprintf("Create of %q", id), errOf(n.Namespaces.Create(t.Context(), id, nil)), "namespace")
			wantConfig(t, fmt.Sprintf("Delete of %q", id), n.Namespaces.Delete(t.Context(), id), "namespace")
		}
		wantConfig(t, "Create with another kernel's sysctl", errOf(n.Namespaces.Create(t.Context(), "c", map[string]string{"kernel.hostname": "x"})), "sysctls")
		if got := list(t, n); !slices.Equal(got, []string{"b"}) {
			t.Errorf("List after refused calls = %v, want [b]", got)
		}
	}},
	{"a context that has ended ends every call", func(t testing.TB, n Node) {
		ensure(t, n, front())
		path := create(t, n, "a")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for name, err := range map[string]error{
			"Ensure":      n.Driver.Ensure(ctx, small()),
			"Remove":      n.Driver.Remove(ctx, "front"),
			"Attach":      errOf(n.Driver.Attach(ctx, attachment("front", "a", path))),
			"Detach":      n.Driver.Detach(ctx, attachment("front", "a", path)),
			"Attachments": errOf(n.Driver.Attachments(ctx)),
			"Create":      errOf(n.Namespaces.Create(ctx, "b", nil)),
			"Delete":      n.Namespaces.Delete(ctx, "a"),
			"List":        errOf(n.Namespaces.List(ctx)),
		} {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s with a context that has ended = %v, want its error", name, err)
			}
		}
		if got := list(t, n); !slices.Equal(got, []string{"a"}) {
			t.Errorf("List = %v, want [a] as before", got)
		}
	}},
}

func errOf[T any](_ T, err error) error { return err }

func ensure(t testing.TB, n Node, nw network.Network) {
	t.Helper()
	if err := n.Driver.Ensure(t.Context(), nw); err != nil {
		t.Fatalf("Ensure(%s) = %v", nw.Name, err)
	}
}

func create(t testing.TB, n Node, id string) string {
	t.Helper()
	path, err := n.Namespaces.Create(t.Context(), id, nil)
	if err != nil {
		t.Fatalf("Create(%s) = %v", id, err)
	}
	return path
}

func list(t testing.TB, n Node) []string {
	t.Helper()
	ids, err := n.Namespaces.List(t.Context())
	if err != nil {
		t.Fatalf("List = %v", err)
	}
	return ids
}

func attachment(networkName, task, path string) network.Attachment {
	return network.Attachment{Network: networkName, Task: task, Namespace: path, Interface: "eth0", Default: true}
}

// attach makes a task's namespace, if it is not there, and attaches it.
func attach(t testing.TB, n Node, networkName, task string) network.Interface {
	t.Helper()
	got, err := n.Driver.Attach(t.Context(), attachment(networkName, task, create(t, n, task)))
	if err != nil {
		t.Fatalf("Attach(%s, %s) = %v", networkName, task, err)
	}
	return got
}

func detach(t testing.TB, n Node, a network.Attachment) {
	t.Helper()
	if err := n.Driver.Detach(t.Context(), a); err != nil {
		t.Fatalf("Detach(%s, %s) = %v", a.Network, a.Task, err)
	}
}

func attachments(t testing.TB, n Node) []network.Attachment {
	t.Helper()
	all, err := n.Driver.Attachments(t.Context())
	if err != nil {
		t.Fatalf("Attachments = %v", err)
	}
	return all
}

func wantConfig(t testing.TB, what string, err error, field string) {
	t.Helper()
	var wrong *network.ConfigError
	if !errors.As(err, &wrong) || wrong.Field != field {
		t.Errorf("%s = %v, want a *ConfigError about %s", what, err, field)
	}
}
