// Package dns answers the names of services to the tasks of a node, and
// forwards all other questions.
//
// A [Server] serves one [Zone] for each network, on the network's gateway
// addresses, to clients of the network alone. In a task of namespace "shop",
// with Options.Domain "orchestrate.internal", these are answered:
//
//	web                                      the service's virtual addresses
//	web.shop                                 the same, from any namespace
//	web.shop.svc.orchestrate.internal        the same, fully qualified
//	tasks.web (and tasks.web.shop…)          the addresses of all ready tasks
//	2.web (and 2.web.shop…)                  the address of the task in slot 2
//	db-0.db (and db-0.db.shop…)              the address of the task named db-0
//	_http._tcp.web.shop.svc.orchestrate.internal    SRV: the port named http
//	1.0.72.10.in-addr.arpa                   PTR: back to the full name
//
// A name that exists without an address of the asked family is NOERROR with
// no answer; one that does not exist is NXDOMAIN (RFC 2308). Names under the
// domain, names of one label and addresses of the networks are never asked
// upstream; everything else is, over UDP and, where the answer is truncated,
// over TCP.
//
//	server := dns.New(dns.Options{})
//	err := server.Set([]dns.Zone{{
//		Network: "front",
//		Listen:  []netip.Addr{netip.MustParseAddr("10.71.0.1")},
//		Clients: []netip.Prefix{netip.MustParsePrefix("10.71.0.0/16")},
//		Services: []dns.Service{{
//			Namespace: "shop", Name: "web",
//			Virtual: []netip.Addr{netip.MustParseAddr("10.72.0.1")},
//		}},
//	}})
//	…
//	err = server.Run(ctx)
//
// [Server.Set] replaces everything in one step. A task's resolv.conf has the
// gateway as name server and [Server.Search] as search list; without the
// list, names of one label are of the namespace of the asking task.
package dns
