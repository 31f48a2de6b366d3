//go:build linux

package bridge

import (
	"context"
	"fmt"
	"strings"

	"github.com/orchestrate-go/orchestrate/network"
)

var _ network.Counter = (*Driver)(nil)

// Connections implements [network.Counter] by counters of the kernel. The nat
// chains see the first packet of each connection alone. A client whose SYN is
// refused and who tries again is counted each time.
func (d *Driver) Connections(ctx context.Context) (map[string]uint64, error) {
	if err := d.begin(ctx); err != nil {
		return nil, err
	}
	d.balancing.Lock()
	defer d.balancing.Unlock()
	counts := map[string]uint64{}
	service := map[element]string{}
	for _, r := range d.balance.rules {
		if !r.Count {
			continue
		}
		counts[r.Service] = 0
		for e := range elementsOf(r) {
			if strings.HasPrefix(e.set, setCounted) {
				service[e] = r.Service
			}
		}
	}
	if len(counts) == 0 {
		return counts, nil
	}
	c, err := d.table.open()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{setCounted, setCountedAll} {
		for _, family := range []string{"4", "6"} {
			elements, err := c.GetSetElements(d.table.sets[name+family])
			if err != nil {
				return nil, fmt.Errorf("read the counters of nft table %s: %w", d.table.name, err)
			}
			for _, e := range elements {
				if s, ours := service[element{name + family, string(e.Key)}]; ours && e.Counter != nil {
					counts[s] += e.Counter.Packets
				}
			}
		}
	}
	return counts, nil
}
