package control

import (
	"fmt"
	"slices"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// A published port belongs to the service whose spec has it: Apply sees to it that
// no two have. But what is in front of a service can be of an earlier template, when
// it is rolled back or a trial goes on, and have a port that the spec gave up and
// another service took meanwhile. It is the other's then.

// cede returns a frontend without the published ports that belong to others, and a
// message that says which; empty if none do.
func (s *State) cede(svc *service, f *record.Frontend) (*record.Frontend, string) {
	if f == nil || svc.spec == 0 || !svc.strays(f) {
		return f, ""
	}
	message := ""
	own := *f
	own.Ports = slices.Clone(f.Ports)
	for i := range own.Ports {
		p := &own.Ports[i]
		if p.Published == 0 || svc.publishes(*p) {
			continue
		}
		for _, other := range s.services {
			if other != svc && other.publishes(*p) {
				message = fmt.Sprintf("its published port %d/%s belongs to service %s by now", p.Published, p.Protocol, other.key)
				p.Published, p.HostIP, p.Local = 0, "", false
				break
			}
		}
	}
	return &own, message
}

// strays reports whether f publishes a port that the service's spec does not.
func (svc *service) strays(f *record.Frontend) bool {
	return slices.ContainsFunc(f.Ports, func(p record.Port) bool { return p.Published != 0 && !svc.publishes(p) })
}

// publishes reports whether the service's spec has a published port, or one that
// cannot be there beside it.
func (svc *service) publishes(p record.Port) bool {
	return svc.spec != 0 && svc.job == nil && svc.work != nil && slices.ContainsFunc(svc.work.Ports, func(q record.Port) bool {
		return q.Published == p.Published && q.Protocol == p.Protocol && record.SharedHost(q.HostIP, p.HostIP)
	})
}

// ceded has the services looked at whose frontends publish what their specs do not,
// since the published ports of another spec have changed from what they were.
func (s *State) ceded(was, is []record.Port) {
	if s.loading || slices.Equal(was, is) || !slices.ContainsFunc(slices.Concat(was, is), func(p record.Port) bool { return p.Published != 0 }) {
		return
	}
	for _, svc := range s.services {
		if svc.frontend != nil && svc.strays(svc.frontend) || svc.rollout != nil && svc.rollout.Rollback != nil && svc.earlier != nil {
			s.mark(svc)
		}
	}
}
