package dns_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/orchestrate-go/orchestrate/network/dns"
)

func Example() {
	server := dns.New(dns.Options{Domain: "orchestrate.internal", Port: 5353})
	// A program that runs has the gateways of its networks here; without an
	// address to listen on, the zone is checked and nothing else.
	err := server.Set([]dns.Zone{{
		Network: "front",
		Clients: []netip.Prefix{netip.MustParsePrefix("10.71.0.0/16")},
		Services: []dns.Service{{
			Namespace: "shop", Name: "web",
			Virtual: []netip.Addr{netip.MustParseAddr("10.72.0.1")},
		}},
	}})
	fmt.Println(err)
	fmt.Println(server.Search("shop"))

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	fmt.Println(errors.Is(server.Run(ctx), context.Canceled))
	// Output:
	// <nil>
	// [shop.svc.orchestrate.internal svc.orchestrate.internal]
	// true
}
