package embed_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/embed"
)

// One member on a loopback address; more than one, and TLS, are in the package's
// documentation.
func ExampleStart() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	member, err := embed.Start(ctx, embed.Options{
		Name: "a", Dir: filepath.Join(dir, "etcd"),
		PeerURL: "http://127.0.0.1:0", ClientURL: "unix://" + filepath.Join(dir, "etcd.sock"),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer member.Close()

	s, err := member.Open(etcd.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	_, err = s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put("/services/default/web", []byte("spec"))}})
	item, found, _ := s.Get(ctx, "/services/default/web")
	fmt.Printf("%s %v %v\n", item.Value, found, err)
	// Output: spec true <nil>
}
