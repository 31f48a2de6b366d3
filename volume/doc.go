// Package volume is the interface between an agent and storage that outlives
// tasks.
//
// A [Driver] creates, mounts, unmounts and removes named volumes. A [Volume]
// is what to provide, as data; a [Mount] is its use by one task. A volume that
// a task has mounted cannot be removed, and one that is Exclusive has one task
// at a time.
//
// What a driver can do beyond that is found by type assertion: a [Snapshotter]
// copies a volume's content at one moment, an [Expander] raises its limit, a
// [Binder] gives tasks folders of the host, a [Fencer] holds a volume to the
// newest of its tasks, and a [Reacher] has volumes that several nodes reach.
//
//	err := driver.Create(ctx, volume.Volume{Name: "db", Size: 10 << 30})
//	use := volume.Mount{Volume: "db", Task: "db.1"}
//	path, err := driver.Mount(ctx, use)
//	// start the task with path bound into its containers; when it has ended:
//	err = driver.Unmount(ctx, use)
//
// Every call is idempotent, so an agent that was killed makes it again: the
// same mount has the same path, and undoing what is not there is no error.
//
// Drivers are volume/local, for directories, images and tmpfs of one Linux
// node, and volume/memory, for tests; volume/volumetest is the suite that they
// pass and that any other driver can run.
package volume
