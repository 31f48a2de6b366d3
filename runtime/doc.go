// Package runtime is the interface between an agent and what runs containers
// on its node.
//
// A [Runtime] pulls images and starts, awaits, signals, removes and lists
// containers. Drivers are runtime/containerd, for real containers, and
// runtime/memory, for tests; runtime/runtimetest is the suite that both pass
// and that any other driver can run.
package runtime
