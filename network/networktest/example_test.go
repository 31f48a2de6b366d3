package networktest_test

import (
	"testing"

	"github.com/orchestrate-go/orchestrate/network/memory"
	"github.com/orchestrate-go/orchestrate/network/networktest"
)

// The test of a driver: your own Open in place of memory.New.
func ExampleTestDriver() {
	_ = func(t *testing.T) { // func TestConformance
		networktest.TestDriver(t, func(t testing.TB) networktest.Node {
			d := memory.New(memory.Options{})
			t.Cleanup(func() {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			})
			return networktest.Node{Driver: d, Namespaces: d}
		})
	}
}
