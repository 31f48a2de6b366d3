package identity_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

// A machine joins with a token and gets a name that others believe.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	authority, err := identity.NewAuthority("shop", 10*365*24*time.Hour)
	if err != nil {
		panic(err)
	}
	s := memory.New(memory.Options{})
	defer s.Close()
	registrar, err := identity.NewRegistrar(identity.Options{Store: s, Keyring: identity.NewKeyring(authority)})
	if err != nil {
		panic(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	done := make(chan error)
	go func() { done <- registrar.Serve(ctx, listener) }()

	token, err := registrar.NewToken(ctx, identity.TokenOptions{Role: identity.Node})
	if err != nil {
		panic(err)
	}

	// On the machine, which got token.Text():
	dir, err := os.MkdirTemp("", "identity-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	member, err := identity.Join(ctx, identity.JoinOptions{
		Address: listener.Addr().String(), Token: token, Dir: dir,
		ID: identity.ID{Role: identity.Node, Name: "n1"},
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(member.ID())

	cancel()
	fmt.Println(<-done)
	// Output:
	// node:n1
	// <nil>
}
