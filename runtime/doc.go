// Package runtime is the interface between an agent and what runs containers
// on its node.
//
// A [Runtime] pulls images and starts, awaits, signals, removes and lists
// containers. A [Spec] is one container, as data; [Spec.Validate] says what is
// wrong with it. What a runtime can do beyond that is found by type
// assertion: [Execer], [LogReader], [StatsReader], [Importer], [ImageLister],
// [Resolver], [Updater], [Holder].
//
//	if _, err := rt.Pull(ctx, "docker.io/library/redis:7", runtime.PullOptions{}); err != nil {
//		return err
//	}
//	spec := runtime.Spec{ID: "redis.1", Image: "docker.io/library/redis:7"}
//	if err := rt.Start(ctx, spec); err != nil {
//		return err // a *StartError says whether trying again can help
//	}
//	exit, err := rt.Wait(ctx, spec.ID)
//
// The truth about what runs is the runtime's: containers carry labels, outlive
// the program that started them, and are found again with List. Every method
// can be repeated, so whoever was interrupted starts again from the top.
//
// Drivers are runtime/containerd, for real containers, and runtime/memory, for
// tests in virtual time; runtime/runtimetest is the suite that both pass and
// that any other driver can run. Package runtime/image builds images from a
// binary or a folder and checks archives of them; runtime/registry asks
// registries what tags mean. This package imports the standard library alone.
package runtime
