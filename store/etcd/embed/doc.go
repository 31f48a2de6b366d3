// Package embed runs etcd's own server inside the program: each control plane of
// a fleet, one to five of them, is a member, and nothing else has to be
// installed.
//
//	member, err := embed.Start(ctx, embed.Options{
//		Name: "a", Dir: "/var/lib/myapp/etcd",
//		PeerURL: "https://10.0.0.1:2380", ClientURL: "https://10.0.0.1:2379",
//		PeerTLS: certs, ClientTLS: certs,
//		Members: map[string]string{
//			"a": "https://10.0.0.1:2380", "b": "https://10.0.0.2:2380", "c": "https://10.0.0.3:2380",
//		},
//	})
//	defer member.Close()
//	state, err := member.Open(etcd.Options{})
//	fleet, err := orchestrate.New(state)
//
// Three members bear the loss of one, five of two. An even number bears no more
// than the odd one below it.
//
// Transport: nothing listens without TLS, with certificates of both sides,
// except on a loopback address that is written as "http://…" or on a unix
// socket, "unix:///…". The certificate and its key are read at each handshake,
// so a renewed one needs no restart; a new CA does.
//
// Disk: etcd syncs each commit, so the folder wants a disk of its own speed; and
// its log is on it, so two members never share a folder.
//
// # Backup and restore
//
// [Member.Snapshot] writes the whole state, with a checksum, while the member
// serves. [Restore] makes from it the folder of a member of a new cluster; do it
// for each member, with the same Members, then Start them. Revisions go on far
// above those of the snapshot and all history counts as compacted, so that no
// control plane or agent that outlived the disaster takes an old revision for a
// new one: their watches list again. Leases are restored with their items, and
// those whose owners are gone expire.
//
// # Replacing a member
//
// On a member that lives:
//
//	invitation, err := member.Replace(ctx, "c", "d", "https://10.0.0.4:2380")
//
// and in the new process:
//
//	embed.Start(ctx, embed.Options{Name: "d", …, Join: invitation})
//
// The new member catches up as a learner, without a vote, so that the cluster
// bears as many losses as before; Start returns when it votes. A member that
// lost its disk must be replaced too, under a new name or its own: with an empty
// folder it must not come back as who it was, since it has forgotten how it
// voted.
//
// # Space
//
// Old revisions are compacted after [Options.History]. When the quota is used up
// nevertheless, every write but deletions is etcd.ErrNoSpace: delete what is too
// much, or raise the quota, and call [Member.Reclaim] on each member.
//
// What etcd would end the process for, such as a disk that refuses to write, ends
// the member instead: [Member.Done] is closed and [Member.Err] says why.
package embed
