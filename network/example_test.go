package network_test

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/orchestrate-go/orchestrate/network"
)

// A program that restarts claims the addresses that it wrote down, and goes on
// with those that are free.
func ExamplePool() {
	pool, err := network.NewPool(netip.MustParsePrefix("10.1.0.0/29"))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(pool.Claim(netip.MustParseAddr("10.1.0.3")))
	first, _ := pool.Take() // .0 is the network's and .1 the gateway's
	second, _ := pool.Take()
	fmt.Println(first, second)

	var taken *network.AddressError
	fmt.Println(errors.As(pool.Claim(first), &taken), taken.Taken)

	pool.Free(first)
	third, _ := pool.Take() // not the one just freed
	fmt.Println(third, pool.InUse())
	// Output:
	// <nil>
	// 10.1.0.2 10.1.0.4
	// true true
	// 10.1.0.5 3
}

// Two services that publish one port are refused together, by name.
func ExampleCanonical() {
	rules := []network.Rule{
		{Service: "default/web", Port: 80, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.1.0.2:8080")}},
		{Service: "default/api", Port: 80, Protocol: network.TCP},
	}
	_, err := network.Canonical(rules)
	fmt.Println(err)

	rules[1].Port = 81
	canonical, err := network.Canonical(rules)
	for _, r := range canonical {
		fmt.Println(r.Service, r.Frontend(), r.Endpoints)
	}
	fmt.Println(err)
	// Output:
	// tcp *:80 is claimed by default/api and default/web; publish one of them on another port
	// default/web tcp *:80 [10.1.0.2:8080]
	// default/api tcp *:81 []
	// <nil>
}
