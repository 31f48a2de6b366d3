package main

import (
	"runtime"
	"slices"
	"time"
)

// sample is one run of one contender.
type sample struct {
	// whole is the contender's work on demand that it has been told of: for us
	// Place, for SwarmKit one pass of its loop, its store commits included.
	whole time.Duration
	// strict sets aside what is in favour of us: for us Place and building
	// the Cluster from nothing, for peers deciding without writing it down.
	strict time.Duration
	cpu    time.Duration // of all threads during whole
	bytes  uint64        // allocated during whole
	allocs uint64
	kept   int64 // growth of the live heap
}

// contender is a scheduler under measurement. run builds the load, times it,
// and checks what came out.
type contender struct {
	name   string
	run    func(load) (sample, error)
	cannot func(load) bool // loads that it is not given; nil when it gets all
	once   bool            // it takes part in one round only, for the time it needs
}

// timed runs f and says what it cost. The heap is collected before, so that
// nobody pays for what others left.
func timed(f func()) sample {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	cpu, start := cpuTime(), time.Now()
	f()
	s := sample{whole: time.Since(start), cpu: cpuTime() - cpu}
	runtime.ReadMemStats(&after)
	s.bytes = after.TotalAlloc - before.TotalAlloc
	s.allocs = after.Mallocs - before.Mallocs
	return s
}

// live is the heap that is reachable now. It takes two collections to see past
// sync.Pool and finalizers.
func live() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// middle is the median of each figure of its own.
func middle(all []sample) sample {
	return sample{
		whole:  median(all, func(s sample) time.Duration { return s.whole }),
		strict: median(all, func(s sample) time.Duration { return s.strict }),
		cpu:    median(all, func(s sample) time.Duration { return s.cpu }),
		bytes:  median(all, func(s sample) uint64 { return s.bytes }),
		allocs: median(all, func(s sample) uint64 { return s.allocs }),
		kept:   median(all, func(s sample) int64 { return s.kept }),
	}
}

func median[T int64 | uint64 | time.Duration](all []sample, of func(sample) T) T {
	v := make([]T, len(all))
	for i := range all {
		v[i] = of(all[i])
	}
	slices.Sort(v)
	return v[len(v)/2]
}
