// Command bench compares this project's scheduler with its peers and prints the
// table of BENCHMARKS.md:
//
//	go run -tags kube .   # everything, at most 10 minutes
//	go run .              # without kube-scheduler, which is minutes to compile
//	go run . -quick       # small sizes, under 2 minutes
//	go test -bench .      # the same loads under Go's benchmark runner
//
// It is a module of its own, so that the peers never enter the project's
// go.mod. Peers take turns with us within each round of one run, each on
// clusters and loads of the same shape, each with its own batch path, no debug
// logging and the default garbage collector. Every run is checked before its
// time counts: all replicas placed, none where it may not be.
package main
