// Package wireguard encrypts what goes between the nodes of an overlay network:
// by WireGuard in the kernel where it has it, else by WireGuard's own
// implementation in Go (wireguard-go) in this process, over a TUN interface.
//
//	d, err := overlay.Open(overlay.Options{
//		…,
//		Encryption: wireguard.New(wireguard.Options{}),
//	})
//
// What the kernel encrypts does not depend on this process. What the process
// encrypts is dropped while it is away, never sent in the clear: the interface
// stays, with its routes, and nobody reads from it. When the process is back it
// takes up the same interface with the same keys and peers, which [overlay]
// keeps in a file, and calls all peers at once; connections go on.
//
// The kernel's part has been written to the same configuration, but has not been
// run: the kernels that this was tested on have no WireGuard.
package wireguard
