package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"testing"
	"time"
)

func main() {
	quick := flag.Bool("quick", false, "small sizes only")
	budget := flag.Duration("budget", 5*time.Minute, "leave out runs of peers that are not likely to be over by then")
	flag.Parse()
	p := fullPlan(time.Now().Add(*budget))
	if *quick {
		p = quickPlan(time.Now().Add(*budget))
	}
	if err := p.report(os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// report measures everything and writes the tables.
func (p *plan) report(w, progress io.Writer) error {
	start := time.Now()
	res, err := p.compare(progress)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s, %s/%s, GOMAXPROCS %d, %d processors, GOGC at its default\n\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), runtime.NumCPU())
	p.writeComparison(w, res)
	p.writeAlone(w, res)
	one, err := p.writeOne(w)
	if err != nil {
		return err
	}
	curve, err := p.writeCurve(w)
	if err != nil {
		return err
	}
	foot, err := ourFootprint(p.memory)
	if err != nil {
		return err
	}
	p.writeGoals(w, res, one, curve, foot)
	for _, s := range res.skipped {
		fmt.Fprintln(w, "- Left out:", s)
	}
	fmt.Fprintf(w, "\nTook %s.\n", time.Since(start).Round(time.Second))
	return nil
}

func (p *plan) writeComparison(w io.Writer, res *results) {
	fmt.Fprintf(w, "#### Beside the peers\n\n")
	t := table{head: []string{"load, nodes × tasks", "scheduler", "time", "placements/s", "ratio", "strict time", "strict ratio", "CPU time", "CPU ratio", "allocated", "allocations", "kept per task"}}
	for _, l := range p.loads {
		our, _ := res.get(l, ours.name)
		for i, c := range append([]contender{ours}, p.peers...) {
			s, ok := res.get(l, c.name)
			if !ok {
				continue
			}
			name, ratio, strict, cpu := "", "", "", ""
			if i == 0 {
				name = l.String()
			} else {
				ratio = times(s.whole, our.whole)
				cpu = times(s.cpu, our.cpu)
				strict = times(s.strict, our.strict)
			}
			t.add(name, c.name, span(s.whole), amount(rate(l.tasks, s.whole)), ratio, span(s.strict), strict, span(s.cpu), cpu,
				size(float64(s.bytes)), amount(float64(s.allocs)), size(max(0, float64(s.kept)/float64(l.tasks))))
		}
	}
	t.write(w)
}

func (p *plan) writeAlone(w io.Writer, res *results) {
	fmt.Fprintf(w, "#### Larger\n\n")
	t := table{head: []string{"load, nodes × tasks", "time", "placements/s", "CPU time", "and with building the cluster", "allocated", "allocated per task", "allocations per task"}}
	for _, l := range p.alone {
		s, _ := res.get(l, ours.name)
		t.add(l.String(), span(s.whole), amount(rate(l.tasks, s.whole)), span(s.cpu), span(s.strict), size(float64(s.bytes)),
			size(float64(s.bytes)/float64(l.tasks)), fmt.Sprintf("%.3f", float64(s.allocs)/float64(l.tasks)))
	}
	t.write(w)
}

// writeOne returns the slowest of the cases that fit.
func (p *plan) writeOne(w io.Writer) (perOp, error) {
	fmt.Fprintf(w, "#### One task into a full cluster of %s nodes\n\n", short(p.full))
	t := table{head: []string{"", "time", "CPU time", "allocated", "allocations"}}
	s, c, err := full(p.full)
	if err != nil {
		return perOp{}, err
	}
	var slowest perOp
	for _, k := range oneIntoFull {
		op, err := benchmark(func(b *testing.B) { benchOne(b, s, c, k.reqs(), k.fits) })
		if err != nil {
			return perOp{}, fmt.Errorf("one task %s: %w", k.name, err)
		}
		if k.fits > 0 && op.time > slowest.time {
			slowest = op
		}
		t.add("orchestrate, one "+k.name, span(op.time), span(op.cpu), size(float64(op.bytes)), fmt.Sprint(op.allocs))
	}
	const perNode, count = 10, 500
	d, err := swarmOne(p.full, perNode, count)
	if err != nil {
		return perOp{}, err
	}
	t.add(fmt.Sprintf("SwarmKit, one of %d, its store read before", count), span(d), "", "", "")
	t.write(w)
	return slowest, nil
}

// writeCurve returns our points.
func (p *plan) writeCurve(w io.Writer) ([]perOp, error) {
	fmt.Fprintf(w, "#### One placement, by nodes\n\n")
	t := table{head: []string{"nodes", "orchestrate", "CPU time", "allocations", "SwarmKit", "ratio"}}
	var points []perOp
	for _, n := range p.curve {
		op, err := benchmark(func(b *testing.B) { benchOneSpread(b, n) })
		if err != nil {
			return nil, err
		}
		d, err := swarmOne(n, 0, max(50, 1_000_000/n))
		if err != nil {
			return nil, err
		}
		points = append(points, op)
		t.add(short(n), span(op.time), span(op.cpu), fmt.Sprint(op.allocs), span(d), times(d, op.time))
	}
	t.write(w)
	return points, nil
}

// writeGoals says which goals this run met. The clock on the wall decides; CPU
// time beside it shows what other work on the machine added.
func (p *plan) writeGoals(w io.Writer, res *results, one perOp, curve []perOp, foot footprint) {
	fmt.Fprintf(w, "#### Against the goals\n\n")
	t := table{head: []string{"goal", "measured", "by CPU time", ""}}
	goal := func(text, measured, cpu string, met bool) {
		t.add(text, measured, cpu, map[bool]string{true: "met", false: "**not met**"}[met])
	}
	ratio := func(k kind, peer contender, want float64) {
		l, ok := p.largest(res, k, peer)
		if !ok {
			return
		}
		our, _ := res.get(l, ours.name)
		s, _ := res.get(l, peer.name)
		goal(fmt.Sprintf("%s: %.0f× %s", l, want, peer.name), times(s.whole, our.whole), times(s.cpu, our.cpu),
			s.whole.Seconds() >= want*our.whole.Seconds())
	}
	ratio(identical, swarmSingle, 200)
	ratio(identical, swarmGrouped, 200)
	ratio(constrained, swarmSingle, 50)
	ratio(constrained, swarmGrouped, 50)
	ratio(mixed, swarmGrouped, 50)
	for _, l := range p.alone {
		if l.tasks == 1e6 {
			s, _ := res.get(l, ours.name)
			goal(l.String()+" in under 1 s", span(s.whole), span(s.cpu), s.whole < time.Second)
		}
	}
	goal("under 300 B a task", size(foot.perTask), "", foot.perTask < 300)
	goal("under 2 KiB a node", size(foot.perNode), "", foot.perNode < 2048)
	goal("one task into a full cluster in under 50 µs", span(one.time), span(one.cpu), one.time < 50*time.Microsecond)
	first, last := curve[0], curve[len(curve)-1]
	flat := func(a, b time.Duration) float64 { return float64(b) / max(1, float64(a)) }
	goal(fmt.Sprintf("a placement with %s nodes costs at most twice one with %s", short(p.curve[len(p.curve)-1]), short(p.curve[0])),
		fmt.Sprintf("%.2f×", flat(first.time, last.time)), fmt.Sprintf("%.2f×", flat(first.cpu, last.cpu)), flat(first.time, last.time) <= 2)
	t.write(w)
}

// largest is the largest load of a kind that the peer has placed.
func (p *plan) largest(res *results, k kind, peer contender) (load, bool) {
	var best load
	for _, l := range p.loads {
		if _, ok := res.get(l, peer.name); ok && l.kind == k && l.tasks > best.tasks {
			best = l
		}
	}
	return best, best.tasks > 0
}
