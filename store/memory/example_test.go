package memory_test

import (
	"context"
	"fmt"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

func ExampleNew() {
	ctx := context.Background()
	s := memory.New(memory.Options{})
	defer s.Close()
	revision, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.Put("/hello", []byte("world"))}})
	fmt.Println(revision, err)
	// Output: 1 <nil>
}
