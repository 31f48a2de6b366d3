package runtime

import "context"

// Updater is a [Runtime] that can change what a running container may use.
type Updater interface {
	// Update makes r the bounds of a running container, whose processes go
	// on: zero values lift a bound, as they set none at the start. Doing it
	// again changes nothing. It is not kept over the end of the container: the
	// next one is started with what its [Spec] says.
	//
	// A container that is not there or has exited is [ErrNotFound]. What
	// cannot be set while it runs, such as a memory limit below what the
	// kernel can take back, is a [*ResourceError], and then all bounds are as
	// they were.
	Update(ctx context.Context, id string, r Resources) error
}

// ResourceError is a change of a running container's bounds that the kernel
// refused. A container that starts with them may run.
type ResourceError struct {
	ID     string
	Reason string
	Err    error
}

func (e *ResourceError) Error() string {
	return "resources of container " + e.ID + ": " + e.Reason
}

// Unwrap returns the runtime's own error.
func (e *ResourceError) Unwrap() error { return e.Err }
