//go:build linux

package local

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/orchestrate-go/orchestrate/store"
)

// pools are where this fleet's networks take their addresses from.
type pools struct {
	V4 netip.Prefix `json:"v4"`
	V6 netip.Prefix `json:"v6"`
}

const poolsKey = "/local/pools"

// addressPools returns the fleet's pools: those of the first opening, when they
// were derived from the folder, past everything that the machine then had an
// address or a route in. So two fleets rarely meet, and never at once.
func addressPools(s store.Store, dir string) (pools, error) {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	var p pools
	if found, err := readJSON(ctx, s, poolsKey, &p); err != nil || found {
		return p, err
	}
	used, err := usedPrefixes()
	if err != nil {
		return p, err
	}
	sum := sha256.Sum256([]byte(dir))
	// A /16 of 10.64.0.0/10, which is less used than the rest of 10.0.0.0/8,
	// and a unique local /48 (RFC 4193, section 3.2: 40 bits by chance).
	for i := range 64 {
		candidate := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64 + (sum[0]+byte(i))%64, 0, 0}), 16)
		clash := false
		for _, u := range used {
			clash = clash || u.Overlaps(candidate)
		}
		if !clash {
			p.V4 = candidate
			break
		}
	}
	if !p.V4.IsValid() {
		return p, fmt.Errorf("every /16 of 10.64.0.0/10 is in use on this machine; give the fleet address pools with orchestrate.WithAddressPools")
	}
	p.V6 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, sum[1], sum[2], sum[3], sum[4], sum[5]}), 48)
	return p, writeJSON(ctx, s, poolsKey, p)
}

// usedPrefixes are the prefixes of the machine's addresses and IPv4 routes.
func usedPrefixes() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var used []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			used = append(used, p.Masked())
		}
	}
	file, err := os.Open("/proc/net/route")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 8 {
			continue
		}
		dest, err1 := strconv.ParseUint(fields[1], 16, 32)
		mask, err2 := strconv.ParseUint(fields[7], 16, 32)
		if err1 != nil || err2 != nil || mask == 0 {
			continue // the heading, or the default route
		}
		// The kernel prints both in the machine's byte order.
		bits := 0
		for m := mask; m != 0; m &= m - 1 {
			bits++
		}
		a := netip.AddrFrom4([4]byte{byte(dest), byte(dest >> 8), byte(dest >> 16), byte(dest >> 24)})
		used = append(used, netip.PrefixFrom(a, bits))
	}
	return used, nil
}
