// Package volumetest is the conformance suite of [volume.Driver].
//
// A driver's test opens it over storage that is empty and runs the suite:
//
//	func TestConformance(t *testing.T) {
//		volumetest.Run(t, func(t *testing.T) volumetest.Harness {
//			dir := t.TempDir()
//			return volumetest.Harness{Open: func() (volume.Driver, error) {
//				return mydriver.Open(dir)
//			}}
//		})
//	}
//
// The abilities of [volume.Snapshotter], [volume.Expander] and [volume.Binder]
// are tested when the driver has them.
package volumetest
