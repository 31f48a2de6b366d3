//go:build linux

package bridge

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// layout is the version of the table's chains and sets. A table of another
// version, left by another version of the program, is replaced whole.
const layout = "layout-6"

// tablePrefix is what the tables of all fleets begin with.
const tablePrefix = "orchestrate-"

// table is the fleet's nft table. Its chains are fixed; what changes are the
// elements of its sets and maps: those about networks are replaced whole,
// there are few, and those about services one by one.
type table struct {
	name    string
	netNS   *os.File
	uplinks []string
	tunnels []string
	nft     *nftables.Table
	sets    map[string]*nftables.Set

	mu        sync.Mutex // guards what follows
	loopback6 bool       // whether ports are published at ::1
	networks  string     // what was written about networks, in any one form
}

// layout names the table's own: with tunnels it has a chain more.
func (t *table) layout() string {
	if len(t.tunnels) > 0 {
		return layout + "-tunnels"
	}
	return layout
}

func newTable(id string, netNS *os.File, uplinks, tunnels []string) *table {
	t := &table{name: tablePrefix + id, netNS: netNS, uplinks: uplinks, tunnels: tunnels}
	t.nft = &nftables.Table{Name: t.name, Family: nftables.TableFamilyINet}
	t.sets = make(map[string]*nftables.Set)
	for i, s := range allSets() {
		s.Table = t.nft
		// The library numbers sets by a counter of its own that is not safe
		// for concurrent use; numbers need to be unique in a transaction only.
		s.ID = uint32(i + 1)
		t.sets[s.Name] = s
	}
	return t
}

// open returns a connection whose Flush is one transaction of any size.
func (t *table) open() (*nftables.Conn, error) {
	opts := []nftables.ConnOption{nftables.WithSockOptions(func(c *netlink.Conn) error {
		// A batch is one message to the kernel and has an acknowledgement
		// for each of its parts.
		return errors.Join(c.SetWriteBuffer(bufferSize), c.SetReadBuffer(bufferSize))
	})}
	if t.netNS != nil {
		opts = append(opts, nftables.WithNetNSFd(int(t.netNS.Fd())))
	}
	return nftables.New(opts...)
}

const bufferSize = 32 << 20

// exists reports whether the table is there in this version's layout: an
// administrator may have flushed the whole ruleset.
func (t *table) exists() (here, current bool, err error) {
	c, err := t.open()
	if err != nil {
		return false, false, err
	}
	if _, err := c.ListTableOfFamily(t.name, nftables.TableFamilyINet); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return false, false, nil
		}
		return false, false, fmt.Errorf("look for nft table %s: %w", t.name, err)
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, false, fmt.Errorf("look into nft table %s: %w", t.name, err)
	}
	current = slices.ContainsFunc(chains, func(chain *nftables.Chain) bool {
		return chain.Table.Name == t.name && chain.Name == t.layout()
	})
	return true, current, nil
}

// begin returns a transaction on a table that has its fixed parts, when it
// ends. Fresh says that it has no elements.
func (t *table) begin() (c *nftables.Conn, fresh bool, err error) {
	here, current, err := t.exists()
	if err != nil {
		return nil, false, err
	}
	if c, err = t.open(); err != nil {
		return nil, false, err
	}
	if current {
		return c, false, nil
	}
	if here {
		c.DelTable(t.nft)
	}
	c.AddTable(t.nft)
	for _, s := range allSets() {
		if err := c.AddSet(t.sets[s.Name], nil); err != nil {
			return nil, false, err
		}
	}
	for _, chain := range t.chains() {
		c.AddChain(chain.Chain)
	}
	for _, chain := range t.chains() {
		for _, exprs := range chain.rules {
			c.AddRule(&nftables.Rule{Table: t.nft, Chain: chain.Chain, Exprs: exprs})
		}
	}
	return c, true, nil
}

// flush ends a transaction.
func (t *table) flush(c *nftables.Conn) error {
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nft table %s: %w", t.name, err)
	}
	return nil
}

// setNetworks makes the sets about networks say what they should, in one
// transaction.
func (t *table) setNetworks(nets []*segment, loopback6 bool) error {
	slices.SortFunc(nets, func(a, b *segment) int { return cmp.Compare(a.Name, b.Name) })
	want := fmt.Sprint(networkElements(nets, t.uplinks, t.tunnels, loopback6))
	c, fresh, err := t.begin()
	if err != nil {
		return err
	}
	t.mu.Lock()
	same := t.networks == want
	t.mu.Unlock()
	if same && !fresh {
		return nil // a transaction waits for the last one's clean-up, 10 ms and more
	}
	if err := t.addNetworks(c, nets, loopback6); err != nil {
		return err
	}
	if err := t.flush(c); err != nil {
		return err
	}
	t.note(loopback6, want)
	return nil
}

func (t *table) note(loopback6 bool, networks string) {
	t.mu.Lock()
	t.loopback6, t.networks = loopback6, networks
	t.mu.Unlock()
}

// publishesLoopback6 is what setNetworks was told last.
func (t *table) publishesLoopback6() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.loopback6
}

func (t *table) addNetworks(c *nftables.Conn, nets []*segment, loopback6 bool) error {
	elements := networkElements(nets, t.uplinks, t.tunnels, loopback6)
	for _, name := range networkSets {
		c.FlushSet(t.sets[name])
		if err := t.add(c, name, elements[name]); err != nil {
			return err
		}
	}
	return nil
}

// perMessage keeps a message's list of elements below the 64 KiB that a
// netlink attribute holds.
const perMessage = 400

func (t *table) add(c *nftables.Conn, set string, elements []nftables.SetElement) error {
	for part := range slices.Chunk(elements, perMessage) {
		if err := c.SetAddElements(t.sets[set], part); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) del(c *nftables.Conn, set string, elements []nftables.SetElement) error {
	for part := range slices.Chunk(elements, perMessage) {
		if err := c.SetDeleteElements(t.sets[set], part); err != nil {
			return err
		}
	}
	return nil
}

// remove takes the table away.
func (t *table) remove() error {
	here, _, err := t.exists()
	if err != nil || !here {
		return err
	}
	c, err := t.open()
	if err != nil {
		return err
	}
	c.DelTable(t.nft)
	return t.flush(c)
}

// ruleChain is a chain with its rules.
type ruleChain struct {
	*nftables.Chain
	rules [][]expr.Any
}
