// Package fastpath takes the packets of established flows between tasks of two
// nodes past the node's bridge, table and connection tracking, from the task's
// interface to the one that leads to the other node and back. It is what the
// kernel's flow table does for routers (Documentation/networking/nf_flowtable.rst),
// for kernels that have none and for VXLAN too, in the manner of Cilium's host
// routing and of ONCache (Lin et al., NSDI 2025).
//
// Who may speak to whom, and what is translated to what, is still for the table
// to decide, and for connection tracking to remember. The first packets of a flow
// go by them. Once a task has sent some packets by a flow, a program at its
// interface says so; [Path.Run] asks connection tracking what it knows of the flow,
// and writes what is to be done to its packets into a map, which programs at the
// interfaces then do: addresses and ports, a hop, VXLAN's headers, and on by the
// interface that the kernel's routes name for each packet.
//
// Connection tracking goes on to own the flow. What begins or ends a connection
// goes by it, and one packet in some seconds, so that it does not forget; it is told
// not to mind sequence numbers that jump. A flow of which nothing was seen for some
// seconds more has to be learnt anew, and one that connection tracking does not
// know any longer, or knows otherwise, is forgotten.
//
// Programs and maps stay with the interfaces when the process ends. What they know
// goes on to pass for a while, or until the next process takes them away, and learns
// anew.
package fastpath

//go:generate ./generate.sh
