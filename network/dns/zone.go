package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Zone is what is answered on one network.
type Zone struct {
	Network string // unique in a Set
	// Listen are the node's addresses on the network.
	Listen []netip.Addr
	// Clients are the network's subnets. A question from elsewhere is
	// refused: the server is no resolver for the world.
	Clients []netip.Prefix
	// Internal networks have no way out: other names are refused, not
	// forwarded.
	Internal bool
	Services []Service
}

// Service is one service's names on a network.
type Service struct {
	Namespace string // "default" when empty
	Name      string // a DNS label
	// Virtual are its virtual addresses.
	Virtual []netip.Addr
	// Tasks are its ready tasks.
	Tasks []Task
	// Ports are answered as SRV records where they have a name.
	Ports []Port
}

// Task is one ready task of a service.
type Task struct {
	Slot      string // a DNS label, such as "2"
	Addresses []netip.Addr
	// Name is a further label for the task, such as "db-0". An Unready task is
	// known by that alone.
	Name    string
	Unready bool
}

// Port is a named port of a service at its virtual address.
type Port struct {
	Name     string
	Protocol string // "tcp" when empty
	Number   uint16
}

// ZoneError is a zone that cannot be served.
type ZoneError struct {
	Network string
	Field   string
	Reason  string
}

func (e *ZoneError) Error() string {
	return fmt.Sprintf("dns zone of network %q: %s: %s", e.Network, e.Field, e.Reason)
}

// records is what a name has. A nil value of an existing name means none of
// that kind.
type records struct {
	addresses []netip.Addr
	shuffle   bool
	srv       []*dns.SRV
}

// table is a zone ready to be asked. Names are in lower case, with a closing
// dot.
type table struct {
	Zone
	domain string // with a closing dot
	full   map[string]*records
	// short are the same names without ".svc.DOMAIN.".
	short map[string]*records
	// parents are the names under the domain that have names below them.
	parents map[string]bool
	ptr     map[netip.Addr]string
	// namespaces are those of the tasks, by address.
	namespaces map[netip.Addr]string
}

// compile checks a zone and prepares it.
func compile(z Zone, domain string) (*table, error) {
	wrong := func(field, format string, args ...any) (*table, error) {
		return nil, &ZoneError{Network: z.Network, Field: field, Reason: fmt.Sprintf(format, args...)}
	}
	t := &table{
		Zone: z, domain: domain,
		full: map[string]*records{}, short: map[string]*records{},
		parents: map[string]bool{"svc." + domain: true, domain: true},
		ptr:     map[netip.Addr]string{}, namespaces: map[netip.Addr]string{},
	}
	for _, a := range z.Listen {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return wrong("listen", "%s is no address of the node on the network; give its gateways", a)
		}
	}
	if len(z.Listen) > 0 && len(z.Clients) == 0 {
		return wrong("clients", "is empty; give the network's subnets")
	}
	for i, s := range z.Services {
		if s.Namespace == "" {
			s.Namespace = "default"
		}
		if !isLabel(s.Name) || !isLabel(s.Namespace) {
			return wrong(fmt.Sprintf("services[%d]", i), "%q in namespace %q is no DNS name; use labels of 1 to 63 letters, digits and dashes", s.Name, s.Namespace)
		}
		base := strings.ToLower(s.Name + "." + s.Namespace + ".")
		if t.short[base] != nil {
			return wrong(fmt.Sprintf("services[%d]", i), "%s/%s is there twice", s.Namespace, s.Name)
		}
		if err := t.addService(s, base); err != nil {
			return wrong(fmt.Sprintf("services[%d]", i), "%v", err)
		}
	}
	return t, nil
}

func (t *table) addService(s Service, base string) error {
	add := func(name string, r *records) string {
		full := name + "svc." + t.domain
		t.short[name], t.full[full] = r, r
		for _, rest, ok := strings.Cut(full, "."); ok && !t.parents[rest]; _, rest, ok = strings.Cut(rest, ".") {
			t.parents[rest] = true
		}
		return full
	}
	service := add(base, &records{addresses: unmapped(s.Virtual)})
	for _, a := range unmapped(s.Virtual) {
		t.ptr[a] = service
	}
	tasks := &records{shuffle: true}
	add("tasks."+base, tasks)
	for _, k := range s.Tasks {
		if !isLabel(k.Slot) || strings.EqualFold(k.Slot, "tasks") {
			return fmt.Errorf("slot %q is no DNS label, or taken", k.Slot)
		}
		addresses, name := unmapped(k.Addresses), ""
		if !k.Unready {
			slot := strings.ToLower(k.Slot) + "."
			if t.short[slot+base] != nil {
				return fmt.Errorf("slot %q is there twice", k.Slot)
			}
			name = add(slot+base, &records{addresses: addresses})
			tasks.addresses = append(tasks.addresses, addresses...)
		}
		if k.Name != "" {
			if !isLabel(k.Name) || strings.EqualFold(k.Name, "tasks") {
				return fmt.Errorf("task name %q is no DNS label, or taken", k.Name)
			}
			label := strings.ToLower(k.Name) + "."
			if t.short[label+base] != nil {
				return fmt.Errorf("task name %q is there twice", k.Name)
			}
			name = add(label+base, &records{addresses: addresses})
		}
		for _, a := range addresses {
			if name != "" {
				t.ptr[a] = name
			}
			t.namespaces[a] = strings.ToLower(s.Namespace)
		}
	}
	for _, p := range s.Ports {
		if p.Name == "" {
			continue
		}
		protocol := p.Protocol
		if protocol == "" {
			protocol = "tcp"
		}
		if !isLabel(p.Name) || !isLabel(protocol) {
			return fmt.Errorf("port %q/%q is no DNS label", p.Name, p.Protocol)
		}
		name := "_" + strings.ToLower(p.Name) + "._" + strings.ToLower(protocol) + "." + base
		r := t.short[name]
		if r == nil {
			r = &records{}
			add(name, r)
		}
		r.srv = append(r.srv, &dns.SRV{Priority: 0, Weight: 1, Port: p.Number, Target: service})
	}
	return nil
}

// find looks a name up, in lower case with a closing dot, for a client.
func (t *table) find(name string, client netip.Addr) *records {
	if r := t.full[name]; r != nil {
		return r
	}
	if r := t.short[name]; r != nil {
		return r
	}
	namespace, ok := t.namespaces[client]
	if !ok {
		namespace = "default"
	}
	return t.short[name+namespace+"."]
}

// has reports whether an address is the network's business: no one upstream
// knows it.
func (t *table) has(a netip.Addr) bool {
	if _, ok := t.ptr[a]; ok {
		return true
	}
	return slices.ContainsFunc(t.Clients, func(p netip.Prefix) bool { return p.Contains(a) })
}

// allows reports whether a client may ask.
func (t *table) allows(client netip.Addr) bool {
	return slices.ContainsFunc(t.Clients, func(p netip.Prefix) bool { return p.Contains(client) }) || slices.Contains(t.Listen, client)
}

// isLabel is RFC 1123's rule for one label of a host's name.
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range s {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

func unmapped(addresses []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(addresses))
	for _, a := range addresses {
		if a.IsValid() {
			out = append(out, a.Unmap().WithZone(""))
		}
	}
	return out
}

// reverse reads the address out of a name under in-addr.arpa or ip6.arpa.
func reverse(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(rest, ".")
		slices.Reverse(parts)
		a, err := netip.ParseAddr(strings.Join(parts, "."))
		return a, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		if i < 31 && rest[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		nibble, err := strconv.ParseUint(rest[2*i:2*i+1], 16, 4)
		if err != nil {
			return netip.Addr{}, false
		}
		at := 31 - i
		b[at/2] |= byte(nibble) << (4 * (1 - at%2))
	}
	return netip.AddrFrom16(b), true
}
