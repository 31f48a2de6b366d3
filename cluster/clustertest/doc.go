// Package clustertest makes many machines on one, to test what a fleet does when
// they fail. Everything is real: the kernel's networking, the program, and the
// containers that it runs.
//
//	c, err := clustertest.New(clustertest.Options{Hosts: 3})
//	if err != nil { … }
//	defer c.Close()
//	for _, h := range c.Hosts() {
//		p, err := h.Start(clustertest.Program{Path: self, Args: []string{"agent", h.IPv4.String()}})
//		…
//	}
//	c.Host("n1").Cut()                          // its cable says nothing any more
//	c.Lose("n1", "n2", 1)                       // one way only
//	c.Host("n2").Process("agent").Kill()        // as a crash
//	c.Host("n3").FillDisk()
//	c.Heal()
//
// A [Host] is a network, mount and UTS namespace: its own interfaces, addresses,
// nftables, mounts, /run/orchestrate and host name, on the file system and the
// processor of this machine. Its interface eth0 has an IPv4 and an IPv6 address
// on a bridge that joins all hosts, and the program that calls New too, at
// [Cluster.IPv4]. A [Process] is whatever program a test runs there, most of all
// the test's own binary, started again with other arguments.
//
// Faults, each by a call:
//
//   - of the network: [Host.Cut], [Cluster.Partition], [Cluster.Lose] for one-way
//     and random loss; with [Options.Shaped] also delay, jitter, duplication and
//     reordering, see [Host.Shape];
//   - of processes: [Process.Kill], [Process.Stop] and [Process.Continue], or any
//     signal;
//   - of the disk: with [Options.Disk], [Host.FillDisk] and [Host.FreeDisk];
//   - of the clock: [Program.Clock] moves the monotonic clock that a process sees
//     from its start on, so a restart is a jump. The kernel has one wall clock for
//     all, so that cannot be moved for one host; and neither clock can be moved
//     under a process that runs.
//
// What a cluster made is written down before it is made. [Cluster.Close] removes
// it: processes and all that descended from them, namespaces with what is mounted
// and plugged in them, cgroups of package runtime/containerd, and folders. When
// the program that had it died, the next [New] or [Clean] does. Nothing is found
// by its name alone: a process belongs to a host when it is in its namespaces, or
// descends from one that is.
//
// It needs root and Linux 5.6 or newer; Program.Clock 6.3.
package clustertest
