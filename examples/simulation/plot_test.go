package simulation

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/orchestratetest"
)

// plot collects where the tasks of a service are over time.
type plot struct {
	at          []time.Duration
	own, rental []int
}

// watch is an invariant that always holds and looks on meanwhile.
func (p *plot) watch(service string) orchestratetest.Invariant {
	return orchestratetest.Always("it is drawn", func(v *orchestratetest.View) error {
		s := v.Service(service)
		if s == nil {
			return nil
		}
		own, rental := 0, 0
		for _, t := range s.Tasks {
			switch {
			case !t.Serves():
			case strings.HasPrefix(t.Node, "rented"):
				rental++
			default:
				own++
			}
		}
		if n := len(p.at); n == 0 || own != p.own[n-1] || rental != p.rental[n-1] {
			p.at, p.own, p.rental = append(p.at, v.Since()), append(p.own, own), append(p.rental, rental)
		}
		return nil
	})
}

// rented is how many tasks ran on rented machines at a time.
func (p *plot) rented(at time.Duration) int {
	n := 0
	for i := range p.at {
		if p.at[i] <= at {
			n = p.rental[i]
		}
	}
	return n
}

// svg draws the load as a line and the tasks as two areas, one on the other.
func (p *plot) svg(load orchestratetest.Load) []byte {
	const width, height, week, most, top = 1000.0, 300.0, 7 * 24 * time.Hour, 28.0, 2800.0
	x := func(d time.Duration) float64 { return 40 + width*float64(d)/float64(week) }
	y := func(share float64) float64 { return 20 + height*(1-share) }
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="1060" height="370" font-family="sans-serif" font-size="12">`+"\n")
	area := func(color string, of func(i int) int) {
		fmt.Fprintf(&b, `<path fill="%s" d="M%.1f %.1f`, color, x(0), y(0))
		for i := range p.at {
			until := week
			if i+1 < len(p.at) {
				until = p.at[i+1]
			}
			fmt.Fprintf(&b, "L%.1f %.1fL%.1f %.1f", x(p.at[i]), y(float64(of(i))/most), x(until), y(float64(of(i))/most))
		}
		fmt.Fprintf(&b, "L%.1f %.1fZ\"/>\n", x(week), y(0))
	}
	area("#e8a33d", func(i int) int { return p.own[i] + p.rental[i] })
	area("#4a7fb5", func(i int) int { return p.own[i] })
	fmt.Fprintf(&b, `<path fill="none" stroke="#222" d="M`)
	for d := time.Duration(0); d <= week; d += time.Hour {
		fmt.Fprintf(&b, "%.1f %.1f ", x(d), y(load(d)/top))
	}
	fmt.Fprintf(&b, "\"/>\n")
	for day := range 7 {
		fmt.Fprintf(&b, `<text x="%.0f" y="340">day %d</text>`+"\n", x(time.Duration(day)*24*time.Hour), day+1)
	}
	for n := 0; n <= int(most); n += 7 {
		fmt.Fprintf(&b, `<text x="10" y="%.0f">%d</text>`+"\n", y(float64(n)/most)+4, n)
	}
	fmt.Fprintf(&b, `<text x="40" y="362"><tspan fill="#4a7fb5">tasks on machines of one's own</tspan>, <tspan fill="#e8a33d">on rented ones</tspan>, and the load in hundreds of requests a second</text>`+"\n</svg>\n")
	return b.Bytes()
}
