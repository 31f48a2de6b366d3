package orchestrate

import (
	"time"

	"github.com/orchestrate-go/orchestrate/volume"
)

// Job is a workload that runs to its end: a fixed set of indexes, each of which
// completes once. It ends by itself, in a [JobResult] that [Fleet.WaitJob]
// returns.
//
// Each index is the work of one task at a time. A task whose main containers end
// with exit code 0 completes its index for good. One that fails is judged by
// Exits, and its index tried again by a new task, after a back-off and elsewhere
// where that can be. A task that is lost with its node, moved or preempted counts
// neither way: its index runs again. So a task may do work twice, as everywhere
// where machines can die; its end is counted once.
//
// A container finds its index in the environment as [EnvIndex], and how often
// that failed before as [EnvAttempt].
//
// As with a [Service], the zero value of a field is its default, and Apply
// refuses what breaks a rule with a [*ValidationError]. An Apply that changes the
// Template, the labels or Completions begins the job anew, as does one of a job
// that failed; of one that completed, and of anything else that changes, it does
// not. What the tags of its images mean is settled when a run begins; see
// [WithResolver]. A service and a job of one namespace cannot have the same name.
type Job struct {
	// Namespace, Name and Labels are as in [Service].
	Namespace string            `json:"namespace,omitempty"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`

	// Completions is the number of indexes, from 0, at most [MaxCompletions]; 1
	// when 0.
	Completions int `json:"completions,omitempty"`
	// Parallelism is how many tasks run at a time at most; 1 when 0. At most
	// [MaxReplicas].
	Parallelism int `json:"parallelism,omitempty"`
	// Gang starts tasks only when there is room for all that are to start: at
	// first Parallelism of them.
	Gang bool `json:"gang,omitempty"`

	// Template is what each task runs. It has no Ports and no SlotVolumes.
	// Restart.Condition is [RestartNever] when empty: a container that fails ends
	// its task, whose exit code Exits then judges. With [RestartOnFailure] it is
	// first restarted in place, and only its last end is judged.
	Template

	// Retries is how often an index is tried again after its first failure; 6
	// when 0, and not at all when [None]. A failure that trying again cannot mend,
	// such as an image that does not exist, is not tried again.
	Retries int `json:"retries,omitempty"`
	// RetryBackoff is the delay before the first retry of an index, 1 s when 0.
	// It doubles with each further one up to MaxRetryBackoff, 5 min when 0.
	RetryBackoff    time.Duration `json:"retryBackoff,omitempty"`
	MaxRetryBackoff time.Duration `json:"maxRetryBackoff,omitempty"`

	// Enough is how many completed indexes complete the job; all when 0. It then
	// stops the others. It fails as soon as so many cannot complete any more.
	Enough int `json:"enough,omitempty"`
	// Exits says what a failed task means, the first rule that fits. Without one
	// its index is tried again.
	Exits []ExitRule `json:"exits,omitempty"`
	// Deadline fails the job when it has been active for so long; never when 0.
	// Time in which it is suspended does not count.
	Deadline time.Duration `json:"deadline,omitempty"`
	// TTL is how long the job is kept after its end, with its result and its
	// tasks' logs; when 0 until it is removed. Then it is as if removed.
	TTL time.Duration `json:"ttl,omitempty"`
	// KeepTasks is how many ended tasks are kept for their logs, the newest; 10
	// when 0, and none when [None]. At most [MaxKeepTasks].
	KeepTasks int `json:"keepTasks,omitempty"`
	// Suspend stops the tasks and starts none; what has completed stays so.
	Suspend bool `json:"suspend,omitempty"`

	// LossPolicy is what becomes of tasks whose node is silent.
	LossPolicy

	// DependsOn is what must be healthy or have completed before a run is started;
	// see [Dependency]. At most 64. A change of it does not begin the job anew.
	DependsOn []Dependency `json:"dependsOn,omitempty"`
}

// What the containers of a job's task find in their environment.
const (
	EnvIndex   = "ORCHESTRATE_INDEX"   // from 0
	EnvAttempt = "ORCHESTRATE_ATTEMPT" // how often the index failed before
)

// ExitRule says what the failure of a task means.
type ExitRule struct {
	// Codes are the exit codes that it is about, from 1 to 255; any failure when
	// empty, that of a node included.
	Codes []int `json:"codes,omitempty"`
	// Action is what follows.
	Action ExitAction `json:"action"`
}

// ExitAction is what follows from the failure of a task.
type ExitAction string

// The actions.
const (
	ExitRetry     ExitAction = "retry"      // it counts against Retries
	ExitIgnore    ExitAction = "ignore"     // the index is tried again, and the failure not counted
	ExitFailIndex ExitAction = "fail-index" // the index is given up
	ExitFailJob   ExitAction = "fail-job"   // the job has failed
)

// The bounds of a [Job].
const (
	MaxCompletions = 100_000
	MaxKeepTasks   = 1000
	maxRetries     = 1000
	maxExits       = 64
)

// The defaults of a [Job].
const (
	DefaultRetries         = 6
	DefaultRetryBackoff    = time.Second
	DefaultMaxRetryBackoff = 5 * time.Minute
	DefaultKeepTasks       = 10
)

// exclusive reports whether only one task may have one of the volumes.
func exclusive(volumes []volume.Volume) bool {
	for _, v := range volumes {
		if v.Exclusive {
			return true
		}
	}
	return false
}
