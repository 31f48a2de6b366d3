// Package volume is the interface between an agent and storage that outlives
// tasks.
//
// A [Driver] creates, mounts, unmounts and removes named volumes. Drivers are
// volume/local, for directories of one node, and volume/memory, for tests;
// volume/volumetest is the suite that they pass and that any other driver can
// run.
package volume
