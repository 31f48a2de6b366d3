package memory_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
	"github.com/orchestrate-go/orchestrate/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open:    func(testing.TB) store.Store { return memory.New(memory.Options{}) },
		Virtual: true,
	})
}

// TestConformanceSmallHistory is the same with watchers that fall behind.
func TestConformanceSmallHistory(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open:    func(testing.TB) store.Store { return memory.New(memory.Options{History: 500}) },
		Virtual: true,
	})
}
