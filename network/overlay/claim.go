//go:build linux

package overlay

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/store"
)

// Keys of the store. A slice's key has its number, so that whoever makes the
// key has the slice, and nobody else can.
const (
	keySlices  = Keys + "slices/"  // NETWORK/NUMBER -> slice
	keyNumbers = Keys + "numbers/" // VXLAN number -> name of the network
	keyNames   = Keys + "names/"   // NETWORK -> its VXLAN number
)

// Keys is what all keys of this package begin with but those about encryption, see
// [Rights]. Every node reads and writes them.
const Keys = "/overlay/"

// slice is where a part of a network is.
type slice struct {
	Node     string     `json:"node"`
	Underlay netip.Addr `json:"underlay"`
	MAC      string     `json:"mac"` // of the node's end
	// Link are the addresses by which others on the node's link may send to it
	// directly, the best first; none if they are not to.
	Link []netip.Prefix `json:"link,omitempty"`
}

func sliceKey(name string, index int) string { return fmt.Sprintf("%s%s/%06d", keySlices, name, index) }

// splitKey returns the network and number of a slice.
func splitKey(key string) (name string, index int, ok bool) {
	name, number, ok := strings.Cut(strings.TrimPrefix(key, keySlices), "/")
	index, err := strconv.Atoi(number)
	return name, index, ok && err == nil && index >= 0
}

// sliceBits is the length of the slices of a prefix. An IPv4 slice holds 253
// tasks, fewer where that would leave room for less than 16 nodes.
func (d *Driver) sliceBits(p netip.Prefix) int {
	if d.opts.undivided {
		return p.Bits()
	}
	if p.Addr().Is4() {
		return min(max(p.Bits()+4, 24), 30)
	}
	return min(p.Bits()+16, 120)
}

// sliceCount is into how many slices prefixes are cut.
func (d *Driver) sliceCount(prefixes []netip.Prefix) int {
	n := 1 << 20
	for _, p := range prefixes {
		n = min(n, 1<<min(max(d.sliceBits(p)-p.Bits(), 0), 20))
	}
	return n
}

// cut returns the slice of a number, one part of each prefix.
func (d *Driver) cut(prefixes []netip.Prefix, index int) []netip.Prefix {
	var parts []netip.Prefix
	for _, p := range prefixes {
		bits := max(d.sliceBits(p), p.Bits())
		b := p.Masked().Addr().As16()
		offset := 0 // of the IPv4 address in b, in bits
		if p.Addr().Is4() {
			offset = 96
		}
		for i := range 20 { // the number's bits, the lowest at the slice's end
			if at := offset + bits - 1 - i; index>>i&1 == 1 && at >= 0 {
				b[at/8] |= 0x80 >> (at % 8)
			}
		}
		addr := netip.AddrFrom16(b)
		if p.Addr().Is4() {
			addr = addr.Unmap()
		}
		parts = append(parts, netip.PrefixFrom(addr, bits))
	}
	return parts
}

// hardware derives the address of a node's end on a network: locally
// administered and unicast.
func hardware(node, name string) net.HardwareAddr {
	sum := sha256.Sum256(fmt.Appendf(nil, "overlay/%d:%s/%s", len(node), node, name))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

func hash(parts ...string) int {
	sum := sha256.Sum256([]byte(strings.Join(parts, "/")))
	return int(binary.BigEndian.Uint32(sum[:4]))
}

// claim takes a slice of a network for this node, or finds the one it has.
func (d *Driver) claim(ctx context.Context, name string, whole []netip.Prefix, mac net.HardwareAddr, way underlay) (int, error) {
	own := slice{Node: d.opts.Node, Underlay: d.opts.Underlay, MAC: mac.String()}
	if d.opts.Direct != DirectNever && d.opts.Encryption == nil {
		own.Link = way.addrs
	}
	mine, err := json.Marshal(own)
	if err != nil {
		return 0, err
	}
	count := d.sliceCount(whole)
	for {
		snapshot, err := d.opts.Store.List(ctx, keySlices+name+"/")
		if err != nil {
			return 0, err
		}
		taken := map[int]bool{}
		for _, item := range snapshot.Items {
			_, index, ok := splitKey(item.Key)
			if !ok {
				continue
			}
			taken[index] = true
			var s slice
			if json.Unmarshal(item.Value, &s) != nil || s.Node != d.opts.Node || index >= count {
				continue
			}
			if string(item.Value) == string(mine) {
				return index, nil
			}
			err := d.commit(ctx, item.Unchanged(), store.Put(item.Key, mine)) // the node has moved
			if err == nil || !errors.Is(err, store.ErrConflict) {
				return index, err
			}
		}
		// From a place of its own, so that nodes that come together seldom want
		// the same one.
		index, start := -1, hash(d.opts.Node, name)%count
		for i := range count {
			if n := (start + i) % count; !taken[n] {
				index = n
				break
			}
		}
		if index < 0 {
			return 0, fmt.Errorf("all %d are taken by other nodes; give the network wider subnets: %w", count, network.ErrExhausted)
		}
		key := sliceKey(name, index)
		err = d.commit(ctx, store.Absent(key), store.Put(key, mine))
		if err == nil || !errors.Is(err, store.ErrConflict) {
			return index, err
		}
	}
}

func (d *Driver) commit(ctx context.Context, condition store.Condition, write store.Write) error {
	_, err := d.opts.Store.Commit(ctx, store.Txn{If: []store.Condition{condition}, Writes: []store.Write{write}})
	return err
}

// Forget gives back all slices of a node that will not return, and its keys, so
// that others can have them and no route leads there any more.
func Forget(ctx context.Context, s store.Store, node string) error {
	if err := release(ctx, s, node, ""); err != nil {
		return err
	}
	left, err := s.List(ctx, keyTunnels)
	if err != nil {
		return err
	}
	var writes []store.Write
	for _, item := range left.Items {
		if item.Key == keyNodes+node || item.Key == keyEpoch && !slices.ContainsFunc(left.Items, func(other store.Item) bool {
			return strings.HasPrefix(other.Key, keyNodes) && other.Key != keyNodes+node
		}) {
			writes = append(writes, store.Delete(item.Key))
		}
	}
	if len(writes) > 0 {
		_, err = s.Commit(ctx, store.Txn{Writes: writes})
	}
	return err
}

// release gives back a node's slice of one network, or of all when name is
// empty, and with a network's last slice its number.
func release(ctx context.Context, s store.Store, node, name string) error {
	prefix := keySlices
	if name != "" {
		prefix += name + "/"
	}
	snapshot, err := s.List(ctx, prefix)
	if err != nil {
		return err
	}
	users := map[string]int{}
	var own []store.Item
	for _, item := range snapshot.Items {
		network, _, ok := splitKey(item.Key)
		if !ok {
			continue
		}
		users[network]++
		var r slice
		if json.Unmarshal(item.Value, &r) == nil && r.Node == node {
			users[network]--
			own = append(own, item)
		}
	}
	for _, item := range own {
		_, err := s.Commit(ctx, store.Txn{If: []store.Condition{item.Unchanged()}, Writes: []store.Write{store.Delete(item.Key)}})
		if err != nil && !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	numbers, err := s.List(ctx, keyNumbers)
	if err != nil {
		return err
	}
	for _, item := range numbers.Items {
		if n, used := users[string(item.Value)]; used && n == 0 {
			_, err := s.Commit(ctx, store.Txn{
				If:     []store.Condition{item.Unchanged()},
				Writes: []store.Write{store.Delete(item.Key), store.Delete(keyNames + string(item.Value))},
			})
			if err != nil && !errors.Is(err, store.ErrConflict) {
				return err
			}
		}
	}
	return nil
}

// VXLAN numbers have 24 bits; 0 is left alone.
const maxNumber = 1<<24 - 1

// number returns the VXLAN number of a network, the same on every node: the
// first that is free from a place that follows from the name, taken by whichever
// node comes first, in one commit with the name. Fleets that share an underlay
// rarely meet, since the place follows from that node's bridge ID too.
func (d *Driver) number(ctx context.Context, name string) (int, error) {
	for {
		item, found, err := store.Get(ctx, d.opts.Store, keyNames+name)
		if err != nil {
			return 0, err
		}
		if found {
			return strconv.Atoi(string(item.Value))
		}
		vni, err := d.freeNumber(ctx, name)
		if err != nil {
			return 0, err
		}
		number := strconv.Itoa(vni)
		_, err = d.opts.Store.Commit(ctx, store.Txn{
			If:     []store.Condition{store.Absent(keyNames + name), store.Absent(keyNumbers + number)},
			Writes: []store.Write{store.Put(keyNames+name, []byte(number)), store.Put(keyNumbers+number, []byte(name))},
		})
		if err == nil || !errors.Is(err, store.ErrConflict) {
			return vni, err
		}
	}
}

func (d *Driver) freeNumber(ctx context.Context, name string) (int, error) {
	for n := hash(d.opts.Bridge.ID, name); ; n++ {
		vni := 1 + n%maxNumber
		_, taken, err := store.Get(ctx, d.opts.Store, keyNumbers+strconv.Itoa(vni))
		if err != nil || !taken {
			return vni, err
		}
	}
}
