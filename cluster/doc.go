// Package cluster is a fleet on many machines, in one call on each of them.
//
// On each machine of the control plane, of which there are one, three or five:
//
//	control, err := cluster.OpenControl(ctx, "/var/lib/shop/control", cluster.ControlOptions{
//		Name:      "a",
//		Members:   map[string]netip.Addr{"a": a, "b": b, "c": c}, // the same on each
//		Authority: authority,                                     // the same on each
//	})
//	if err != nil {
//		return err
//	}
//	defer control.Close()
//	err = control.Apply(ctx, orchestrate.Service{Name: "web", …})
//	token, err := control.NewToken(ctx, "n1")
//
// On each machine that runs tasks:
//
//	agent, err := cluster.OpenAgent(ctx, "/var/lib/shop/agent", cluster.AgentOptions{
//		Name: "n1", Address: n1, Control: []netip.Addr{a, b, c}, Token: token,
//	})
//	if err != nil {
//		return err
//	}
//	defer agent.Close()
//	<-agent.Done()
//
// And where a program only calls, such as an operator's tool, [Dial] takes a
// token of [Control.NewClientToken].
//
// A [Control] is a member of etcd, in the process, with access control by the
// names in certificates; the authority of these certificates, and the registrar
// that machines join at; and an [orchestrate.Fleet], of which one leads. An
// [Agent] runs containers by containerd's shim and runc, networks over all nodes
// by direct routes or VXLAN, names by DNS, and volumes in a folder, and serves
// logs, exec and stats to control planes. Nothing listens without TLS and
// certificates of both sides, but for VXLAN. What tasks say to each other is
// encrypted between nodes with [AgentOptions.Encryption]; see package
// network/overlay.
//
// Which ports must be open between machines is in [Ports]. Both kinds can run on
// one machine, with folders of their own.
//
// Containers run on when an agent ends or dies, and the next OpenAgent of the
// folder adopts them. A control plane that is opened again goes on as who it
// was. One that lost its folder is replaced: see [Control.Replace]. When more than
// half have, a snapshot is restored: see [Restore].
//
// It needs Linux; an agent also root, and the programs containerd-shim-runc-v2
// and runc. An application that wants another driver in one place composes the
// same packages itself, as this one does. Package clustertest makes all machines
// of a fleet on one, to test what happens when which of them fails.
package cluster
