// Package memory is a container runtime for tests: containers start at once,
// live in memory, and do what the test says.
//
// A [Runtime] plays one machine. It reads the time with the time package, so
// under testing/synctest an hour of a container's life passes in no time. By
// default every image can be pulled and every process runs until it is told
// to end; [Runtime.SetImage] says otherwise for one reference, [Program] says
// what its process does, and [Runtime.SetFault] makes calls fail or hang.
//
//	rt := memory.New(memory.Options{})
//	rt.SetImage("job:1", memory.Image{Program: memory.Exits(time.Minute, 3)})
//	rt.Pull(ctx, "job:1", runtime.PullOptions{})
//	rt.Start(ctx, runtime.Spec{ID: "job.1", Image: "job:1"})
//	exit, _ := rt.Wait(ctx, "job.1") // a minute later: exit.Code is 3
//
// It passes the conformance suite of package runtimetest, as the drivers for
// real containers do.
package memory
