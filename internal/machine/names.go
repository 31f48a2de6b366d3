//go:build linux

package machine

import (
	"log/slog"
	"slices"
	"strconv"

	"github.com/orchestrate-go/orchestrate/network/dns"
	"github.com/orchestrate-go/orchestrate/node"
)

// Names is the DNS server as a [node.Resolver] and [node.Searcher].
type Names struct{ *dns.Server }

// NewNames returns one that knows nothing yet.
func NewNames(log *slog.Logger) Names {
	return Names{dns.New(dns.Options{Logger: log})}
}

// Set hands the zones on.
func (n Names) Set(zones []node.Zone) error {
	var all []dns.Zone
	for _, z := range zones {
		zone := dns.Zone{Network: z.Network, Listen: z.Listen, Clients: z.Subnets, Internal: z.Internal}
		for _, s := range z.Services {
			service := dns.Service{Namespace: s.Namespace, Name: s.Name, Virtual: s.Virtual}
			if len(s.Virtual) == 0 {
				// Without ports there is nothing to balance: the name
				// stands for the tasks.
				for _, t := range s.Tasks {
					if !t.Unready {
						service.Virtual = append(service.Virtual, t.Addresses...)
					}
				}
			}
			for _, t := range s.Tasks {
				slot := strconv.Itoa(t.Slot)
				task := dns.Task{Slot: slot, Addresses: t.Addresses, Name: t.Name, Unready: t.Unready}
				if last := len(service.Tasks) - 1; last >= 0 && service.Tasks[last].Slot == slot {
					// In a rollout a slot has an old and a new task for a while.
					switch old := &service.Tasks[last]; {
					case t.Unready:
					case old.Unready:
						*old = task
					default:
						old.Addresses = slices.Concat(old.Addresses, t.Addresses)
					}
					continue
				}
				service.Tasks = append(service.Tasks, task)
			}
			for _, p := range s.Ports {
				service.Ports = append(service.Ports, dns.Port{Name: p.Name, Protocol: p.Protocol, Number: p.Port})
			}
			zone.Services = append(zone.Services, service)
		}
		all = append(all, zone)
	}
	return n.Server.Set(all)
}
