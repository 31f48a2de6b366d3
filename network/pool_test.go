package network_test

import (
	"errors"
	"net/netip"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/network"
)

func TestPoolHandsOutEveryUsableAddressOnce(t *testing.T) {
	for _, tc := range []struct {
		prefix      string
		first, last string
		n           int
	}{
		{"10.1.2.0/30", "10.1.2.2", "10.1.2.2", 1},
		{"10.1.2.0/29", "10.1.2.2", "10.1.2.6", 5},
		{"10.1.2.128/25", "10.1.2.130", "10.1.2.254", 125},
		{"10.1.2.77/24", "10.1.2.2", "10.1.2.254", 253}, // not masked
		{"10.1.0.0/16", "10.1.0.2", "10.1.255.254", 1<<16 - 3},
		{"fd00:1::/126", "fd00:1::2", "fd00:1::3", 2},
		{"fd00:1::/120", "fd00:1::2", "fd00:1::ff", 254},
		{"fd00:1::/64", "fd00:1::2", "fd00:1::f:ffff", 1<<20 - 2},
		{"10.0.0.0/8", "10.0.0.2", "10.15.255.255", 1<<20 - 2},
	} {
		pool, err := network.NewPool(netip.MustParsePrefix(tc.prefix))
		if err != nil {
			t.Fatalf("NewPool(%s) = %v", tc.prefix, err)
		}
		seen := map[netip.Addr]bool{}
		var first, last netip.Addr
		for {
			addr, err := pool.Take()
			if errors.Is(err, network.ErrExhausted) {
				break
			}
			if err != nil {
				t.Fatalf("%s: Take = %v, want an address or ErrExhausted", tc.prefix, err)
			}
			if seen[addr] {
				t.Fatalf("%s: %s was handed out twice", tc.prefix, addr)
			}
			seen[addr], last = true, addr
			if !first.IsValid() {
				first = addr
			}
		}
		if len(seen) != tc.n || first.String() != tc.first || last.String() != tc.last {
			t.Errorf("%s: got %d addresses from %s to %s, want %d from %s to %s", tc.prefix, len(seen), first, last, tc.n, tc.first, tc.last)
		}
		if pool.InUse() != tc.n {
			t.Errorf("%s: InUse = %d, want %d", tc.prefix, pool.InUse(), tc.n)
		}
	}
}

func TestPoolRefusesPrefixesWithoutRoom(t *testing.T) {
	for _, prefix := range []netip.Prefix{
		{},
		netip.MustParsePrefix("10.1.2.0/31"), netip.MustParsePrefix("10.1.2.0/32"),
		netip.MustParsePrefix("fd00::/127"), netip.MustParsePrefix("fd00::/128"),
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/8"),
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::ffff:10.0.0.0/104"),
	} {
		_, err := network.NewPool(prefix)
		var wrong *network.ConfigError
		if !errors.As(err, &wrong) || wrong.Field != "subnets" {
			t.Errorf("NewPool(%v) = %v, want a *ConfigError about subnets", prefix, err)
		}
	}
}

func TestPoolClaim(t *testing.T) {
	pool, err := network.NewPool(netip.MustParsePrefix("10.1.0.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	if err := pool.Claim(netip.MustParseAddr("10.1.0.9")); err != nil {
		t.Fatalf("Claim of a free address = %v", err)
	}
	for addr, taken := range map[string]bool{
		"10.1.0.9": true, "10.1.0.0": false, "10.1.0.1": false, "10.1.0.255": false, "10.1.1.2": false, "fd00::9": false,
	} {
		err := pool.Claim(netip.MustParseAddr(addr))
		var wrong *network.AddressError
		if !errors.As(err, &wrong) || wrong.Taken != taken || network.IsTaken(err) != taken {
			t.Errorf("Claim(%s) = %v, want an *AddressError with Taken %v", addr, err, taken)
		}
		pool.Free(netip.MustParseAddr(addr))
	}
	if pool.InUse() != 0 {
		t.Errorf("InUse = %d after everything was freed, want 0", pool.InUse())
	}
	// Beyond the window too.
	wide, err := network.NewPool(netip.MustParsePrefix("fd00::/64"))
	if err != nil {
		t.Fatal(err)
	}
	far := netip.MustParseAddr("fd00::dead:beef:0:1")
	if err := wide.Claim(far); err != nil {
		t.Fatalf("Claim(%s) = %v", far, err)
	}
	if err := wide.Claim(far); !network.IsTaken(err) {
		t.Errorf("second Claim(%s) = %v, want taken", far, err)
	}
	wide.Free(far)
	if err := wide.Claim(far); err != nil {
		t.Errorf("Claim(%s) after Free = %v", far, err)
	}
}

func TestPoolReusesLate(t *testing.T) {
	pool, err := network.NewPool(netip.MustParsePrefix("10.1.0.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	freed, err := pool.Take()
	if err != nil {
		t.Fatal(err)
	}
	pool.Free(freed)
	for i := range 252 {
		addr, err := pool.Take()
		if err != nil {
			t.Fatal(err)
		}
		if addr == freed {
			t.Fatalf("%s came round again after %d of 252 other addresses", freed, i)
		}
	}
	pool.Free(netip.MustParseAddr("10.1.0.50"))
	pool.Free(netip.MustParseAddr("10.1.0.7"))
	pool.Resume(netip.MustParseAddr("10.1.0.20"))
	if addr, err := pool.Take(); err != nil || addr.String() != "10.1.0.50" {
		t.Errorf("Take after Resume(.20) = %s, %v, want .50: the search goes on, it does not begin again", addr, err)
	}
}

// The pool against a plain set, over random prefixes and histories.
func TestPoolProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix := rapid.SampledFrom([]string{"10.9.8.0/28", "10.9.8.192/26", "172.16.0.0/21", "fd00:9::/124", "fd00:9::8000/118", "fd00:9::/64"}).Draw(t, "prefix")
		subnet := netip.MustParsePrefix(prefix)
		pool, err := network.NewPool(subnet)
		if err != nil {
			t.Fatal(err)
		}
		held := map[netip.Addr]bool{}
		var order []netip.Addr
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				addr, err := pool.Take()
				if err != nil {
					if room := 1<<min(20, subnet.Addr().BitLen()-subnet.Bits()) - 3; len(held) < room {
						t.Fatalf("Take = %v with %d of at least %d held", err, len(held), room)
					}
					return
				}
				if held[addr] {
					t.Fatalf("Take gave %s to two holders", addr)
				}
				if !subnet.Contains(addr) || addr == subnet.Addr() || addr == subnet.Addr().Next() || addr.Is4() && addr == network.Broadcast(subnet) {
					t.Fatalf("Take gave %s, which is not usable in %s", addr, subnet)
				}
				held[addr] = true
				order = append(order, addr)
			},
			"free": func(t *rapid.T) {
				if len(order) == 0 {
					return
				}
				i := rapid.IntRange(0, len(order)-1).Draw(t, "i")
				pool.Free(order[i])
				pool.Free(order[i]) // twice is once
				delete(held, order[i])
				order = append(order[:i:i], order[i+1:]...)
			},
			"claim": func(t *rapid.T) {
				addr := subnet.Addr()
				for range rapid.IntRange(0, 20).Draw(t, "offset") {
					addr = addr.Next()
				}
				err := pool.Claim(addr)
				if held[addr] != network.IsTaken(err) {
					t.Fatalf("Claim(%s) = %v, but held is %v", addr, err, held[addr])
				}
				if err == nil {
					held[addr] = true
					order = append(order, addr)
				}
			},
			"": func(t *rapid.T) {
				if pool.InUse() != len(held) {
					t.Fatalf("InUse = %d, want %d", pool.InUse(), len(held))
				}
			},
		})
	})
}

func TestPoolConcurrently(t *testing.T) {
	pool, err := network.NewPool(netip.MustParsePrefix("10.1.0.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu    sync.Mutex
		owner = map[netip.Addr]int{}
		wg    sync.WaitGroup
	)
	for g := range 16 {
		wg.Go(func() {
			for range 500 {
				addr, err := pool.Take()
				if err != nil {
					t.Errorf("Take with at most 16 held = %v", err)
					return
				}
				mu.Lock()
				if other, taken := owner[addr]; taken {
					t.Errorf("%s belongs to %d and %d", addr, other, g)
				}
				owner[addr] = g
				mu.Unlock()

				mu.Lock()
				delete(owner, addr)
				mu.Unlock()
				pool.Free(addr)
			}
		})
	}
	wg.Wait()
	if pool.InUse() != 0 {
		t.Errorf("InUse = %d at the end, want 0", pool.InUse())
	}
}

func BenchmarkPoolTakeFree(b *testing.B) {
	pool, err := network.NewPool(netip.MustParsePrefix("10.1.0.0/16"))
	if err != nil {
		b.Fatal(err)
	}
	for range 1 << 15 {
		if _, err := pool.Take(); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		addr, err := pool.Take()
		if err != nil {
			b.Fatal(err)
		}
		pool.Free(addr)
	}
}
