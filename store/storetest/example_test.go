package storetest_test

import (
	"testing"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
	"github.com/orchestrate-go/orchestrate/store/storetest"
)

// The test of a store: your own in place of memory.New.
func ExampleRun() {
	_ = func(t *testing.T) { // func TestConformance
		storetest.Run(t, storetest.Harness{
			Open: func(testing.TB) store.Store { return memory.New(memory.Options{}) },
		})
	}
}
