package volumetest_test

import (
	"testing"

	"github.com/orchestrate-go/orchestrate/volume"
	"github.com/orchestrate-go/orchestrate/volume/memory"
	"github.com/orchestrate-go/orchestrate/volume/volumetest"
)

// The test of a driver: your own in place of memory.Driver. One that keeps
// files in folders leaves Write and Read empty.
func ExampleRun() {
	_ = func(t *testing.T) { // func TestConformance
		volumetest.Run(t, func(t *testing.T) volumetest.Harness {
			var d memory.Driver
			return volumetest.Harness{
				Open:  func() (volume.Driver, error) { return &d, nil },
				Write: d.WriteFile, Read: d.ReadFile,
			}
		})
	}
}
