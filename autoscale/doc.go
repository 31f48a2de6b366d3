// Package autoscale decides how many tasks a service is to have: a [Policy]
// says what is wanted of its metrics, [Policy.Decide] is a pure function from
// what was measured to a number with its reasons, and [History] is all that it
// remembers. It reads no clock and does no I/O: package orchestrate has the loop
// around it.
//
// The algorithm is that of the Kubernetes horizontal pod autoscaler
// (https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/,
// API autoscaling/v2), as its documentation and controller have it:
//
//   - Each metric proposes ceil(tasks × value / target), and none while that
//     ratio is within the tolerance of 1. The largest proposal wins.
//   - Tasks whose measure is missing count as at their target when there are to
//     be fewer tasks and as idle when there are to be more; tasks that have not
//     been ready yet are left out, and count as idle when there are to be more.
//     If the ratio then points the other way, nothing is changed.
//   - A metric that cannot be read keeps the number from falling, and for one
//     window longer.
//   - A window of stabilization takes the highest of its recommendations before
//     it lets the number fall, the lowest before it lets it grow.
//   - Limits bound the change in a period of time, in tasks or in percent.
//
// Going to no task and coming back follows KEDA
// (https://keda.sh/docs/latest/concepts/scaling-deployments/): a metric of the
// whole service that is above its activation wakes it, and when none has been
// for Policy.Idle it goes to sleep.
//
// Different from Kubernetes: a task that is not ready counts as starting for
// every metric, not for the CPU alone; a service that has more ready tasks than
// it is to have, as while it is updated, is not taken to be larger than it is;
// a new leader takes over the history, and holds what is for one window.
package autoscale
