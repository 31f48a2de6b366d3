// Package memory is a [volume.Driver] that keeps volumes in memory, for tests
// of what uses volumes. It passes volume/volumetest.
//
// The paths that its Mount returns name nothing on the host; tests look at
// the data of a volume by [Driver.WriteFile] and [Driver.ReadFile], and make
// calls fail by [Driver.FailNext].
package memory
