// Package containerd runs containers with containerd's image store and its
// shim for runc, inside the program: there is no daemon to install.
//
// [Open] takes a folder of its own. Containers outlive the program: after
// Close, a crash or an upgrade the next Open of the same folder adopts them,
// with the exit codes of those that ended in between. It needs the programs
// containerd-shim-runc-v2 and runc, found in Options.BinDir, in the folder
// that the environment variable ORCHESTRATE_BIN names, or on PATH; an error
// says which is missing and how to get it. It needs root.
//
//	rt, err := containerd.Open(containerd.Options{Root: "/var/lib/myapp/runtime"})
//	if err != nil {
//		return err
//	}
//	defer rt.Close() // containers run on
//	if _, err := rt.Pull(ctx, "docker.io/library/redis:7", runtime.PullOptions{}); err != nil {
//		return err
//	}
//	err = rt.Start(ctx, runtime.Spec{ID: "redis.1", Image: "docker.io/library/redis:7"})
//
// # How
//
// containerd's own server can run inside a program, but once: a second
// server.New panics, for its metrics are registered with the whole process,
// as are its plugins, each with one configuration. Nor can it be closed: its
// shim manager takes the end of its connection to a shim for the shim's death
// and kills the container. So this package puts the same parts together
// itself: the content store, the metadata database, the overlay snapshotter,
// the unpacker and the registry client are containerd's packages, and the
// shims, which are separate processes, are spoken to in containerd's task API,
// version 3. Any number of Runtimes live in one process, each with its own
// root, and Close leaves nothing behind in it.
//
// The truth about a container is its bundle in Options.State and its shim.
// Exits are learnt from the shim's Wait; a signal goes through a pidfd; what
// the kernel killed for want of memory is read from the container's cgroup
// after its end. None of that needs this program to have been there when it
// happened.
//
// A start makes two folders for the writable layer over the image's layers,
// which are looked up once for each image, and takes a shim that is there, so
// it costs two runs of runc and no database transaction.
//
// # Shared shims
//
// To start a shim costs about what it costs to start a container, so groups of
// containers, such as tasks, share them: the first four have one each, then up
// to eight, or Options.GroupsPerShim, go into one, always into the one that has
// the fewest. A group's own containers are always together.
//
// What a shim takes with it when it dies is the exit codes of its containers
// and the reading ends of their output, so they cannot be left running: they
// are killed, each Wait returns exit code 137, and whoever restarts them gets
// another shim. That is the same whether this program sees the shim die or
// finds it dead at Open. The bound is for this: on a node with more than four
// tasks one shim holds about a quarter of them, at most eight. A shim that
// does not answer for two minutes gets no more containers.
//
// Output is written to files by the shim, and indexed and bounded by this
// program while it has the runtime open: no line is lost within the bound. While
// no program has it open a guard keeps to the same bound: a process of /bin/sh
// that looks each second, and more often while it finds too much, so that as much
// again as is written meanwhile is on the disk for that long. It needs find, stat,
// awk and fallocate (findutils, coreutils, awk, util-linux); without them, or if it
// is killed, the next Open cuts the files down at once. A service manager must
// leave it alone with the shims (systemd: KillMode=process).
//
// # With a daemon
//
// [Connect] has a containerd that runs already, version 2, make and delete the
// containers, for machines that have one and whose tools should see what runs:
//
//	rt, err := containerd.Connect(containerd.ConnectOptions{Root: "/var/lib/myapp/runtime"})
//
// The [Client] that it returns keeps the same promises as a Runtime, by the
// same specs, defaults and log files, and images go into the daemon's store.
// What runs needs the daemon no more: the Client waits for exits at the shims
// themselves, whose sockets it finds by way of the processes, so a daemon that
// is stopped, killed or upgraded ends no Wait and loses no exit. Starts and
// removals wait until it is back. For shims that speak another protocol the
// Client asks the daemon instead, and asks again when that was restarted.
//
// A daemon that starts takes the shim of a container that has ended for a leak
// and deletes it. So each container gets an entry in the daemon's list of
// sandboxes, by which the daemon keeps the shim, and the exit code can be had
// even when neither the program nor the daemon was there at the end.
//
// In the daemon a container is named by its ID and eight random characters,
// new for each start; its labels have the ID, the Root and what the spec has.
//
// # Differences from containerd's defaults
//
// The default seccomp profile allows the system calls of the image's own
// architecture alone; an amd64 image with 32-bit programs needs a profile that
// names SCMP_ARCH_X86. A few messages of containerd's packages, such as one
// about fs-verity at Open, take no logger and go to logrus's standard one.
package containerd
