//go:build linux

package clustertest

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Self names this program's own place on the link in [Cluster.Lose] and
// [Cluster.Partition].
const Self = selfPort

// Any stands for every other in [Cluster.Lose].
const Any = ""

// Lose makes a share of the frames that are sent by one host to another vanish on
// the way, at random: 1 is all of them, 0 none, as at the start. Nobody is told.
// Any stands for everyone else, and each such rule counts by itself: of what two
// rules fit, each takes its share.
func (c *Cluster) Lose(from, to string, share float64) error {
	for _, name := range []string{from, to} {
		if name != Any && name != Self && c.Host(name) == nil {
			return fmt.Errorf("lose frames from %q to %q: there is no host %q", from, to, name)
		}
	}
	if share < 0 || share > 1 {
		return fmt.Errorf("lose frames from %q to %q: the share is %v; want 0 to 1", from, to, share)
	}
	return c.setLosses(func(losses map[[2]string]float64) {
		if share == 0 {
			delete(losses, [2]string{from, to})
		} else {
			losses[[2]string{from, to}] = share
		}
	})
}

// Cut loses all that the host sends and all that is sent to it.
func (h *Host) Cut() error { return h.lose(1) }

// Heal ends what [Host.Cut] began, and what [Cluster.Lose] loses between the host
// and Any.
func (h *Host) Heal() error { return h.lose(0) }

func (h *Host) lose(share float64) error {
	return errors.Join(h.cluster.Lose(h.Name, Any, share), h.cluster.Lose(Any, h.Name, share))
}

// Partition parts the hosts of each group from those of all other groups. Who is
// in none is parted from nobody. Self is who else can be named.
func (c *Cluster) Partition(groups ...[]string) error {
	var errs []error
	for i, a := range groups {
		for j, b := range groups {
			if i == j {
				continue
			}
			for _, from := range a {
				for _, to := range b {
					errs = append(errs, c.Lose(from, to, 1))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// Heal ends every loss of frames. What [Host.Shape] does goes on.
func (c *Cluster) Heal() error {
	return c.setLosses(func(losses map[[2]string]float64) { clear(losses) })
}

// setLosses changes what is lost, and makes the kernel lose that, in one step.
func (c *Cluster) setLosses(change func(map[[2]string]float64)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errors.New("the cluster is closed")
	}
	change(c.losses)
	conn, err := nftables.New(nftables.WithNetNSFd(int(c.link.Fd())))
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: "losses", Family: nftables.TableFamilyBridge}
	conn.AddTable(table) // so that it can be deleted whether it was there or not
	conn.DelTable(table)
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	for _, pair := range slices.SortedFunc(maps.Keys(c.losses), func(a, b [2]string) int {
		return slices.Compare(a[:], b[:])
	}) {
		var exprs []expr.Any
		for i, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			if pair[i] == Any {
				continue
			}
			name := make([]byte, unix.IFNAMSIZ)
			copy(name, pair[i])
			exprs = append(exprs, &expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name})
		}
		if share := c.losses[pair]; share < 1 {
			const parts = 1 << 20
			exprs = append(exprs,
				&expr.Numgen{Register: 1, Modulus: parts, Type: unix.NFT_NG_RANDOM},
				// Numbers of registers are compared in the network's order.
				&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
				&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(share * parts))})
		}
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(exprs, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("lose frames: %w", err)
	}
	return nil
}
