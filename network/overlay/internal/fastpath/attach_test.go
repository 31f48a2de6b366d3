//go:build linux

package fastpath

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A queueing discipline that was made for filters goes with the last of them; an
// administrator's, and what an administrator has there, stays.
func TestAttach(t *testing.T) {
	s := newSpace(t)
	kernel := loaded(t)
	for _, c := range []struct {
		name  string
		steps string
		want  string // what is there at last
	}{
		{"attached", "+a", "clsact a+"},
		{"and detached", "+a -a", ""},
		{"attached twice is there once", "+a +a", "clsact a+"},
		{"detached twice is no error", "+a -a -a", ""},
		{"never attached is no error", "-a", ""},
		{"two names", "+a +b", "clsact a+ b+"},
		{"the first goes first", "+a +b -a", "clsact b+"},
		{"and the second", "+a +b -a -b", ""},
		{"the second goes first", "+a +b -b", "clsact a+"},
		{"and the first", "+a +b -b -a", ""},
		{"one whose name begins with another's", "+a +ab -a", "clsact ab+"},
		{"and it goes, and the other stays", "+a +ab -ab", "clsact a+"},
		{"an administrator's", "clsact filter +a", "clsact a admin"},
		{"stays", "clsact filter +a -a", "clsact admin"},
		{"stays after two", "clsact filter +a +b -a -b", "clsact admin"},
		{"attached twice at an administrator's", "clsact filter +a +a -a", "clsact admin"},
		{"an administrator's for what goes out", "clsact egress +a -a", "clsact admin-egress"},
		{"an administrator's filter at ours", "+a filter", "clsact a+ admin"},
		{"stays with what it is at", "+a filter -a", "clsact admin"},
		{"an administrator's filter at ours, and another's", "+a filter +b -a -b", "clsact admin"},
		{"an administrator's filter that is gone again", "+a filter unfilter -a", ""},
		{"an administrator's filter that went before ours", "clsact filter +a unfilter -a", "clsact"},
		{"and one more of ours", "clsact filter +a unfilter +b -a -b", "clsact"},
		// A process ended between the two steps of its attach.
		{"a queueing discipline that nobody uses is as ours", "clsact +a -a", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			link := iface(t, s, "d0")
			admin := func(parent uint32, name string) *netlink.BpfFilter {
				return &netlink.BpfFilter{
					FilterAttrs: netlink.FilterAttrs{LinkIndex: link, Parent: parent, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
					Name:        name, DirectAction: true, Fd: kernel.FromTask.FD(),
				}
			}
			for _, step := range strings.Fields(c.steps) {
				switch {
				case step[0] == '+':
					check(t, attach(s.links, link, step[1:], kernel.FromTask))
				case step[0] == '-':
					check(t, detach(s.links, link, step[1:]))
				case step == "clsact":
					check(t, s.links.QdiscAdd(qdisc(link)))
				case step == "filter":
					check(t, s.links.FilterAdd(admin(netlink.HANDLE_MIN_INGRESS, "admin")))
				case step == "egress":
					check(t, s.links.FilterAdd(admin(netlink.HANDLE_MIN_EGRESS, "admin-egress")))
				case step == "unfilter":
					check(t, s.links.FilterDel(admin(netlink.HANDLE_MIN_INGRESS, "admin")))
				}
			}
			if got := at(t, s, link); got != c.want {
				t.Errorf("after %q there is %q, want %q", c.steps, got, c.want)
			}
		})
	}
}

// An administrator's filter is asked before ours, whichever came first.
func TestAttachComesLast(t *testing.T) {
	s := newSpace(t)
	kernel := loaded(t)
	link := iface(t, s, "d0")
	check(t, attach(s.links, link, "a", kernel.FromTask))
	check(t, s.links.FilterAdd(&netlink.BpfFilter{ // with a priority that the kernel chooses
		FilterAttrs: netlink.FilterAttrs{LinkIndex: link, Parent: netlink.HANDLE_MIN_INGRESS, Protocol: unix.ETH_P_ALL},
		Name:        "admin", DirectAction: true, Fd: kernel.FromTask.FD(),
	}))
	all, err := s.links.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: link}}, netlink.HANDLE_MIN_INGRESS)
	check(t, err)
	var names []string
	for _, f := range all {
		names = append(names, f.(*netlink.BpfFilter).Name)
	}
	if want := []string{"admin", "orchestrate-a+"}; !slices.Equal(names, want) {
		t.Errorf("filters are %q, want %q", names, want)
	}
}

func TestAttachReplacesTheProgram(t *testing.T) {
	s := newSpace(t)
	link := iface(t, s, "d0")
	program := func() int {
		all, err := s.links.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: link}}, netlink.HANDLE_MIN_INGRESS)
		check(t, err)
		if len(all) != 1 {
			t.Fatalf("there are %d filters, want 1", len(all))
		}
		return all[0].(*netlink.BpfFilter).Id
	}
	check(t, attach(s.links, link, "a", loaded(t).FromTask))
	first := program()
	check(t, attach(s.links, link, "a", loaded(t).FromTask))
	if program() == first {
		t.Error("the filter has still the earlier process's program")
	}
}

func TestAttachOfALinkThatIsGone(t *testing.T) {
	s := newSpace(t)
	kernel := loaded(t)
	link := iface(t, s, "d0")
	check(t, attach(s.links, link, "a", kernel.FromTask))
	check(t, s.links.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: link}}))
	if err := detach(s.links, link, "a"); err != nil {
		t.Errorf("detach of a link that is gone: %v", err)
	}
	if err := attach(s.links, link, "a", kernel.FromTask); err == nil {
		t.Error("attach to a link that is gone is no error")
	}
}

func TestRemove(t *testing.T) {
	s := newSpace(t)
	kernel := loaded(t)
	var links []int
	for _, name := range []string{"d0", "d1", "d2", "d3"} {
		links = append(links, iface(t, s, name))
	}
	check(t, attach(s.links, links[0], "a", kernel.FromTask))
	check(t, attach(s.links, links[1], "a", kernel.FromPeer))
	check(t, attach(s.links, links[1], "b", kernel.FromPeer))
	check(t, attach(s.links, links[2], "b", kernel.FromPeer))
	check(t, s.links.QdiscAdd(qdisc(links[3])))
	for range 2 { // again is no error
		check(t, Remove(s.links, "a"))
		for i, want := range []string{"", "clsact b+", "clsact b+", "clsact"} {
			if got := at(t, s, links[i]); got != want {
				t.Errorf("at interface %d is %q, want %q", i, got, want)
			}
		}
	}
}

func loaded(t *testing.T) *objects {
	t.Helper()
	kernel, err := load(Options{Underlay: netip.MustParseAddr("192.0.2.1")})
	check(t, err)
	t.Cleanup(kernel.close)
	return kernel
}

func iface(t *testing.T, s *space, name string) int {
	t.Helper()
	d := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	check(t, s.links.LinkAdd(d))
	t.Cleanup(func() { _ = s.links.LinkDel(d) }) // a test may have done so
	return d.Index
}

// at says what is at an interface: the queueing discipline, and names of filters
// without what ours have in common.
func at(t *testing.T, s *space, link int) string {
	t.Helper()
	all, err := s.links.QdiscList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: link}})
	check(t, err)
	if !slices.ContainsFunc(all, func(q netlink.Qdisc) bool { return q.Type() == "clsact" }) {
		return ""
	}
	names, err := filters(s.links, link)
	check(t, err)
	for i := range names {
		names[i] = strings.TrimPrefix(names[i], prefix)
	}
	slices.Sort(names)
	return strings.Join(append([]string{"clsact"}, names...), " ")
}
