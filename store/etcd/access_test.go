package etcd_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/embed"
)

// A fleet's etcd by certificates alone: nodes join with tokens, each reads and
// writes what is its own and nothing else, and one that is revoked is cut off.
func TestAccess(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	authority, err := identity.NewAuthority("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	keys := identity.NewKeyring(authority)
	control, err := keys.Member(identity.ID{Role: identity.Control, Name: "c1"}, []string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	files := t.TempDir()
	if err := control.Mirror(files); err != nil {
		t.Fatal(err)
	}
	if err := control.Renew(ctx); err != nil {
		t.Fatal(err)
	}
	tls := embed.TLS{
		Cert: filepath.Join(files, identity.FileCert), Key: filepath.Join(files, identity.FileKey), CA: filepath.Join(files, identity.FileRoots),
	}
	server, err := embed.Start(ctx, embed.Options{
		Name: "c1", Dir: t.TempDir(), PeerURL: "https://127.0.0.1:0", ClientURL: "https://127.0.0.1:0", PeerTLS: tls, ClientTLS: tls,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}()
	refused := make(chan struct{}, 1000) // has one for each refusal
	open := func(m *identity.Member) *etcd.Store {
		t.Helper()
		s, err := etcd.Open(etcd.Options{Refused: func() { refused <- struct{}{} }, Endpoints: []string{server.Endpoint()}, TLS: m.Client(identity.Is(identity.Control)), Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	root := open(control)
	access := root.Access(func(id identity.ID) (read, write []string) {
		return []string{"/tasks/" + id.Name + "/"}, []string{"/status/" + id.Name + "/", "/nodes/" + id.Name}
	})
	if err := access.Enable(ctx); err == nil {
		t.Error("Enable without an operator: got nil, want an error: nobody could turn it off")
	}
	for range 2 {
		if err := access.Enable(ctx, control.ID()); err != nil {
			t.Fatal(err)
		}
	}
	registrar, err := identity.NewRegistrar(identity.Options{Store: root, Keyring: keys, Granter: access})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serving, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- registrar.Serve(serving, l) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	token, err := registrar.NewToken(ctx, identity.TokenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	member, err := identity.Join(ctx, identity.JoinOptions{
		Address: l.Addr().String(), Token: token, Dir: t.TempDir(), ID: identity.ID{Role: identity.Node, Name: "n1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	node := open(member)
	put := func(s store.Store, key string) error {
		_, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put(key, []byte("x"))}})
		return err
	}
	list := func(s store.Store, prefix string) error {
		_, err := s.List(ctx, prefix)
		return err
	}
	for what, err := range map[string]error{
		"the control plane writes a task": put(root, "/tasks/n1/x"),
		"a node reads its tasks":          list(node, "/tasks/n1/"),
		"a node writes a status":          put(node, "/status/n1/x"),
		"a node writes its record":        put(node, "/nodes/n1"),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"a node writes a task of its own":     put(node, "/tasks/n1/x"),
		"a node reads another's tasks":        list(node, "/tasks/n2/"),
		"a node reads the tasks of n10":       list(node, "/tasks/n10/"),
		"a node reads all tasks":              list(node, "/tasks/"),
		"a node reads everything":             list(node, "/"),
		"a node reads a secret":               list(node, "/secrets/"),
		"a node writes another's status":      put(node, "/status/n2/x"),
		"a node writes a record like its own": put(node, "/nodes/n11"),
		"a node takes the lead":               put(node, "/leader"),
		"a node makes a member of somebody":   put(node, "/identity/members/node:n9"),
		"a node gives itself all there is":    greedy(node).Grant(ctx, member.ID()),
		"a node switches access control off":  disable(ctx, node),
		"a node reads who else has joined":    list(node, "/identity/"),
	} {
		if !errors.Is(err, etcd.ErrDenied) {
			t.Errorf("%s: got %v, want ErrDenied", what, err)
		}
	}
	watched, err := node.Watch(ctx, "/tasks/n1/", 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := next(t, watched); got.Err != nil {
		t.Fatalf("a node's watch of its tasks: %v", got.Err)
	}
	if err := registrar.Revoke(ctx, member.ID()); err != nil {
		t.Fatal(err)
	}
	if err := put(root, "/tasks/n1/secret"); err != nil {
		t.Fatal(err)
	}
	for len(refused) > 0 {
		<-refused
	}
	if got := next(t, watched); !errors.Is(got.Err, etcd.ErrDenied) {
		t.Errorf("the watch of a node that was revoked tells %+v, want ErrDenied", got)
	}
	if err := list(node, "/tasks/n1/"); !errors.Is(err, etcd.ErrDenied) && !errors.Is(err, etcd.ErrUnauthenticated) {
		t.Errorf("a revoked node reads its tasks: got %v, want ErrDenied or ErrUnauthenticated", err)
	}
	if len(refused) == 0 {
		t.Error("Refused was not called for a watch and a call that were refused")
	}
	if err := member.Renew(ctx); !errors.Is(err, identity.ErrRevoked) {
		t.Errorf("a revoked node renews: got %v, want ErrRevoked", err)
	}
	if err := access.Revoke(ctx, member.ID()); err != nil {
		t.Errorf("Revoke again: %v", err)
	}
	// A stranger, of an authority of its own with the right name.
	other, err := identity.NewAuthority("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := identity.NewKeyring(other).Member(control.ID(), nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := forged.Renew(ctx); err != nil {
		t.Fatal(err)
	}
	brief, end := context.WithTimeout(ctx, 2*time.Second)
	defer end()
	if _, err := open(forged).List(brief, "/"); err == nil {
		t.Error("a control plane of another authority reads the store")
	}
}

// greedy is an access control that gives rights to everything.
func greedy(s *etcd.Store) *etcd.Access {
	return s.Access(func(identity.ID) (read, write []string) { return nil, []string{"/"} })
}

func disable(ctx context.Context, s *etcd.Store) error {
	_, err := s.Client().AuthDisable(ctx)
	if errors.Is(err, rpctypes.ErrPermissionDenied) {
		return etcd.ErrDenied
	}
	return err
}
