package bolt_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/bolt"
)

func ExampleOpen() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "state.db")

	s, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, _ = s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put("/services/default/web", []byte("spec"))}})

	_, err = bolt.Open(path, bolt.Options{})
	fmt.Println("second opening is refused:", errors.Is(err, bolt.ErrLocked))

	_ = s.Close()
	s, _ = bolt.Open(path, bolt.Options{})
	defer s.Close()
	item, found, _ := s.Get(ctx, "/services/default/web")
	fmt.Printf("after reopening: %s %v\n", item.Value, found)
	// Output:
	// second opening is refused: true
	// after reopening: spec true
}
