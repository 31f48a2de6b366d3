// Package identity gives the machines of a fleet certificates, and decides by
// them who may speak to whom.
//
//   - An [Authority] signs certificates. A [Keyring] holds those that are
//     trusted, so that one can take over from another.
//   - A [Registrar] is the control plane's side. It makes tokens, takes joins,
//     renews certificates, and revokes. What it knows is in the fleet's store.
//   - A [Member] is a machine's side: it has a key that never leaves the machine
//     and a certificate of some hours, which it renews. Its TLS configurations
//     follow every renewal and change of authority; no connection has to end.
//
// The control plane:
//
//	keys := identity.NewKeyring(authority)
//	registrar, err := identity.NewRegistrar(identity.Options{Store: store, Keyring: keys})
//	token, err := registrar.NewToken(ctx, identity.TokenOptions{Role: identity.Node})
//	err = registrar.Serve(ctx, listener) // until ctx ends
//
// A machine that joins, with the token's text:
//
//	member, err := identity.Join(ctx, identity.JoinOptions{
//		Address: "control.example:7443", Token: token, Dir: "/var/lib/shop/identity",
//		ID: identity.ID{Role: identity.Node, Name: "n1"},
//	})
//	go member.Run(ctx) // renews
//	s, err := etcd.Open(etcd.Options{TLS: member.Client(identity.Is(identity.Control)), …})
//
// A token says which authority is to answer, so a joining machine cannot be
// taken in by another, and is good for one key: whoever sees it later, or
// replays the join, is refused. A certificate's common name is its [ID], such
// as "node:n1", which etcd's role-based access takes for the user's name.
package identity
