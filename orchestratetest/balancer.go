package orchestratetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/network"
)

// Rules is what the balancer of a node is programmed with now, in the form of
// [network.Canonical]: nil without [Scenario.Balancers], and of a machine that is off.
func (v *View) Rules(node string) []network.Rule {
	m := v.world.byID[node]
	if m == nil || m.off || m.balancer == nil {
		return nil
	}
	return m.balancer.Rules()
}

// BalancersFollow holds when each node sends the connections to each service to all
// endpoints that are published and nowhere else, within a time of any change. It does
// not ask for that of a node that is off, hangs or cannot reach the store, and says
// nothing without [Scenario.Balancers].
func BalancersFollow(within time.Duration) Invariant {
	const name = "balancers follow endpoints"
	return Invariant{Name: name, source: fmt.Sprintf("orchestratetest.BalancersFollow(%s)", goDuration(within)), state: func() func(*View) error {
		behind := map[*machine]time.Duration{} // since when
		return func(v *View) error {
			want := v.backends()
			for _, m := range v.world.machines {
				if m.balancer == nil || m.off || m.dead || m.hung || m.cut || m.follows(want) == nil {
					delete(behind, m)
					continue
				}
				if _, known := behind[m]; known {
					continue
				}
				since := v.Since()
				behind[m] = since
				v.world.after(within, -1, "behind "+m.id, func() {
					if at, still := behind[m]; !still || at != since || m.off || m.dead || m.hung || m.cut {
						return
					}
					if err := m.follows(v.backends()); err != nil {
						v.world.violated(name, fmt.Errorf("node %s is behind for %v: %w", m.id, within, err))
					}
				})
			}
			return nil
		}
	}}
}

// frontend is where a service is reached: an address of its own and a port.
type frontend struct {
	service string
	address netip.Addr
	port    uint16
}

// backends are the addresses that each frontend is to lead to, sorted.
func (v *View) backends() map[frontend][]netip.Addr {
	serve := map[string]map[string][]*Endpoint{} // by service and network
	for _, published := range v.published {
		for _, e := range published {
			if serve[e.Service] == nil {
				serve[e.Service] = map[string][]*Endpoint{}
			}
			serve[e.Service][e.Network] = append(serve[e.Service][e.Network], e)
		}
	}
	want := map[frontend][]netip.Addr{}
	for service, fe := range v.frontends {
		for net, virtual := range fe.Addresses {
			all := serve[service][net]
			open := slices.DeleteFunc(slices.Clone(all), func(e *Endpoint) bool { return slices.Contains(fe.Held, e.hash) })
			if len(open) == 0 {
				open = all // held back or not, nothing else serves
			}
			for _, address := range virtual {
				var to []netip.Addr
				for _, e := range open {
					for _, a := range e.Addresses {
						if a.Is4() == address.Is4() {
							to = append(to, a)
						}
					}
				}
				slices.SortFunc(to, netip.Addr.Compare)
				for _, p := range fe.Ports {
					want[frontend{service, address, p.Virtual}] = to
				}
			}
		}
	}
	return want
}

// follows is how the machine's balancer differs from what it is to do. mu is held.
func (m *machine) follows(want map[frontend][]netip.Addr) error {
	has := map[frontend][]netip.Addr{}
	for _, r := range m.balancer.Rules() {
		if !r.Address.IsValid() {
			continue // a published port leads to the same
		}
		to := []netip.Addr{}
		for _, e := range r.Endpoints {
			to = append(to, e.Addr())
		}
		slices.SortFunc(to, netip.Addr.Compare)
		has[frontend{r.Service, r.Address, r.Port}] = slices.Compact(to)
	}
	var wrong []string
	for f, to := range want {
		if got, known := has[f]; !known || !slices.Equal(got, slices.Compact(slices.Clone(to))) {
			wrong = append(wrong, fmt.Sprintf("%s at %v leads to %v, want %v", f.service, netip.AddrPortFrom(f.address, f.port), got, to))
		}
	}
	for f, to := range has {
		if _, known := want[f]; !known {
			wrong = append(wrong, fmt.Sprintf("%s at %v leads to %v, and is not there", f.service, netip.AddrPortFrom(f.address, f.port), to))
		}
	}
	if wrong == nil {
		return nil
	}
	slices.Sort(wrong)
	return errors.New(strings.Join(wrong, "; "))
}

// frontend takes in where a service is reached.
func (v *View) frontend(service string, value []byte, deleted bool) {
	delete(v.frontends, service)
	var rec record.Frontend
	if !deleted && json.Unmarshal(value, &rec) == nil {
		v.frontends[service] = rec
	}
}
