// Package local is a whole fleet on one machine in one call.
//
//	fleet, err := local.Open("/var/lib/myapp")
//	if err != nil {
//		return err
//	}
//	defer fleet.Close()
//	err = fleet.Apply(ctx, orchestrate.Service{Name: "web", …})
//	result, err := fleet.Wait(ctx, "web")
//
// [Open] wires the reference implementations: state in a bolt file, real
// containers by containerd's shim and runc, a bridge network with nftables for
// virtual addresses and published ports, names by DNS, and volumes in a folder.
// It runs the control plane and this node's agent in the process. Everything
// is below the folder or named after it, so two fleets on one machine, or in
// one process, are strangers to each other.
//
// Containers run on when the program ends or dies. The next Open of the folder
// adopts them. [Fleet.Destroy] leaves nothing behind.
//
// One machine can stand for several nodes, to try what needs them: see
// [WithNodes].
//
// It needs Linux, root, and the programs containerd-shim-runc-v2 and runc; when
// one is missing, the error says which and how to get it. An application that
// wants another driver in one place, or many machines, composes
// [orchestrate.New] and node.New itself, as this package does.
package local
