package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Runtime runs containers. It is the whole of what a node's agent needs; what
// a runtime can do beyond it is found by type assertion: [Execer],
// [LogReader], [StatsReader], [Importer].
//
// Every method may be called from many goroutines. Every method is
// idempotent, so an agent that crashed in the middle can run it again: Start
// of a container that runs, Kill of one that has exited and Remove of one
// that does not exist all succeed.
type Runtime interface {
	// Pull makes the image named ref present and returns what it is. With
	// [PullMissing] an image that is already here costs no network, nor does
	// one by a digest, which is then known by ref as well; see [Pinned]. The
	// errors wrap [ErrImageNotFound], [ErrUnauthorized] or, for a platform
	// that the image does not have, [ErrPlatform].
	Pull(ctx context.Context, ref string, opts PullOptions) (Image, error)

	// Start makes the container that spec describes and runs it. When it
	// returns nil the process has been started (execve succeeded). If a
	// container with spec.ID exists and is running it is left alone; if one
	// exists that never ran or has exited, it is replaced. On an error
	// nothing of the container is left. An unknown image is
	// [ErrImageNotFound]; a process that cannot be started is a
	// [*StartError].
	Start(ctx context.Context, spec Spec) error

	// Wait blocks until the container's process has exited and says how. It
	// learns of the exit by event. A container that already exited answers
	// at once; one that does not exist is [ErrNotFound].
	Wait(ctx context.Context, id string) (Exit, error)

	// Kill sends a signal to the container's first process, or, with
	// [SIGKILL], to all of its processes. A container that has exited or is
	// gone is not an error.
	Kill(ctx context.Context, id string, signal Signal) error

	// Remove kills the container if it runs and deletes it, its writable
	// layer and everything that Start made, its logs excepted: these stay
	// until [LogReader.RemoveLogs]. A container that does not exist is not
	// an error.
	Remove(ctx context.Context, id string) error

	// List returns the containers of this runtime whose labels include all
	// of labels, in the order of their IDs. With nil it returns all of them.
	List(ctx context.Context, labels map[string]string) ([]Container, error)
}

// Labels that the agent sets on every container, so that the truth about
// what runs can be read back from the runtime after a restart.
const (
	LabelTask      = "orchestrate.task"      // task ID
	LabelContainer = "orchestrate.container" // container's name within the task
	LabelHash      = "orchestrate.hash"      // hash of the task's spec
	LabelAttempt   = "orchestrate.attempt"   // decimal number of the start, from 0
	LabelNamespace = "orchestrate.namespace"
	LabelService   = "orchestrate.service"
)

// Spec describes one container to start. The zero value of every field but
// ID, Image and, for images without one, Args is a safe default.
type Spec struct {
	// ID names the container in its runtime: 1 to 76 characters of
	// [A-Za-z0-9] and, not at the ends, [._-].
	ID     string
	Labels map[string]string

	// Image is a reference that Pull has made present.
	Image string
	// Entrypoint replaces the image's entrypoint and clears its command
	// when not nil; Args replaces the image's command when not nil.
	Entrypoint []string
	Args       []string
	// Env is added to the image's environment as KEY=VALUE; the last one
	// of a key wins.
	Env []string
	Dir string // working directory; the image's, or /, when empty
	// User is user[:group], names or numbers; the image's when empty.
	User     string
	Hostname string

	// NetNS is the path of the network namespace to join. When empty the
	// container gets a fresh one that has a loopback interface alone.
	NetNS string
	// HostNetwork makes the container share the host's network namespace.
	// It excludes NetNS.
	HostNetwork bool

	Mounts    []Mount
	Resources Resources
	Security  Security
	Ulimits   []Ulimit
	Sysctls   map[string]string
	Devices   []Device

	// Group names containers that end together in any case, such as those of
	// a task: they share one supervising process (a shim) where the runtime
	// has such. Empty means that the container is alone. Whether groups share
	// one is the runtime's choice.
	Group string

	// Logs bounds what is kept of stdout and stderr.
	Logs LogLimits
	// Terminal gives the process a pseudo-terminal.
	Terminal bool
}

// Mount makes a file or directory visible inside a container.
type Mount struct {
	Target   string // absolute path inside the container
	Source   string // absolute path on the host; unused with Type "tmpfs"
	Type     string // "bind" (when empty), "tmpfs"
	ReadOnly bool
	Size     int64    // bytes, for tmpfs; 0 for the kernel's default
	Mode     uint32   // permission bits of a tmpfs's root; 0 for 1777
	Options  []string // further mount options, such as "nosuid", "rshared"
}

// Resources bounds what a container may use. Zero values set no bound.
type Resources struct {
	CPU           int64  // hard limit, in thousandths of a core (CFS quota)
	CPUShares     int64  // relative weight, in thousandths of a core requested
	CPUSet        string // such as "0-3,6"
	Memory        int64  // hard limit, in bytes; above it the kernel kills
	MemoryRequest int64  // soft limit, in bytes
	Pids          int64  // hard limit of processes and threads
}

// Security says what a container may do. The zero value is the secure
// default: the fourteen default capabilities of containerd, no new
// privileges, the default seccomp profile, masked and read-only system paths.
type Security struct {
	// CapAdd and CapDrop change the default set; names with or without
	// CAP_, and ALL. Dropping comes first.
	CapAdd  []string `json:"capAdd,omitempty"`
	CapDrop []string `json:"capDrop,omitempty"`
	// AllowNewPrivileges lets setuid programs gain privileges.
	AllowNewPrivileges bool `json:"allowNewPrivileges,omitempty"`
	// ReadOnlyRoot mounts the root filesystem read-only.
	ReadOnlyRoot bool `json:"readOnlyRoot,omitempty"`
	// Seccomp is "" for the default profile, "unconfined", or the JSON of a
	// profile in the OCI runtime-spec's form (config-linux.md, Seccomp).
	Seccomp string `json:"seccomp,omitempty"`
	// UnmaskPaths leaves the system paths visible and writable that are
	// masked by default.
	UnmaskPaths bool `json:"unmaskPaths,omitempty"`
	// Privileged gives all capabilities and devices and lifts every
	// confinement above.
	Privileged bool `json:"privileged,omitempty"`
}

// Ulimit is a limit of setrlimit(2), by its name in lower case without
// RLIMIT_, such as "nofile".
type Ulimit struct {
	Name string `json:"name,omitempty"`
	Soft uint64 `json:"soft,omitempty"`
	Hard uint64 `json:"hard,omitempty"`
}

// Device makes a host device node available inside the container.
type Device struct {
	Source      string `json:"source,omitempty"`      // path on the host
	Target      string `json:"target,omitempty"`      // path in the container; Source when empty
	Permissions string `json:"permissions,omitempty"` // of "rwm"; all when empty
}

// LogLimits bounds what is kept of a container's output on disk. A zero field
// means the runtime's default.
type LogLimits struct {
	MaxBytes int64 `json:"maxBytes,omitempty"` // of one file, before it is rotated; default 16 MiB
	MaxFiles int   `json:"maxFiles,omitempty"` // rotated files kept besides the current; default 2
}

// Signal is a signal's number as the Linux kernel counts.
type Signal int

// Signals that an agent sends.
const (
	SIGHUP  Signal = 1
	SIGINT  Signal = 2
	SIGQUIT Signal = 3
	SIGKILL Signal = 9
	SIGUSR1 Signal = 10
	SIGTERM Signal = 15
)

// State is where a container is in its life.
type State string

// The states of a container.
const (
	Created State = "created" // made, its process not started
	Running State = "running"
	Exited  State = "exited"
)

// Container is what a runtime knows of one container.
type Container struct {
	ID      string
	Labels  map[string]string
	Image   string // the reference it was started from
	State   State
	PID     int       // of the first process, on the host; 0 unless running
	Started time.Time // zero when it never ran
	Exit    Exit      // set when State is Exited
}

// Exit says how a container's process ended.
type Exit struct {
	Code      int // 128 + signal when a signal ended it
	At        time.Time
	OOMKilled bool // the kernel killed a process of it for want of memory
}

// String describes the exit for a person, such as "exit code 137 (SIGKILL),
// out of memory".
func (e Exit) String() string {
	s := fmt.Sprintf("exit code %d", e.Code)
	if e.Code > 128 {
		switch sig := Signal(e.Code - 128); sig {
		case SIGKILL:
			s += " (SIGKILL)"
		case SIGTERM:
			s += " (SIGTERM)"
		case SIGINT:
			s += " (SIGINT)"
		default:
			s += fmt.Sprintf(" (signal %d)", int(sig))
		}
	}
	if e.OOMKilled {
		s += ", out of memory"
	}
	return s
}

// Image is a container image that is present.
type Image struct {
	Ref    string // the reference it is known by
	Digest string // of its manifest or index, such as "sha256:…"
	Size   int64  // bytes of its compressed content
	// What the image's configuration asks for.
	Entrypoint []string
	Command    []string
	Env        []string
	Dir        string
	User       string
	StopSignal string
	Labels     map[string]string
	Volumes    []string // paths that the image declares as volumes
	Platform   string   // such as "linux/amd64"
}

// PullPolicy says when Pull goes to the registry.
type PullPolicy string

// The pull policies.
const (
	PullMissing PullPolicy = ""       // when the image is not present
	PullAlways  PullPolicy = "always" // each time, to follow a moving tag
	PullNever   PullPolicy = "never"  // not at all; ErrImageNotFound if absent
)

// PullOptions says how to pull.
type PullOptions struct {
	Policy PullPolicy
	// Credentials, when not nil, is asked once for each registry host.
	Credentials func(ctx context.Context, host string) (Credentials, error)
	// PlainHTTP is asked whether a registry host is spoken to without TLS.
	// When nil, only loopback addresses are.
	PlainHTTP func(host string) bool
	// Progress, when not nil, is called with growing counts, never from two
	// goroutines at once.
	Progress func(Progress)
	Platform string // such as "linux/arm64"; the machine's when empty
}

// Credentials are a user and a password or token for a registry.
type Credentials struct {
	Username string
	Password string
}

// Progress is how far a pull has come.
type Progress struct {
	Ref   string
	Done  int64 // bytes
	Total int64 // bytes known so far
}

// Execer is a Runtime that can run further processes in a container.
type Execer interface {
	// Exec runs a process in a running container and waits for it. A
	// context that ends kills the process.
	Exec(ctx context.Context, id string, exec Exec) (exitCode int, err error)
}

// Exec is a process to run in a container. Environment, user and directory
// are the container's own where they are empty.
type Exec struct {
	Args     []string
	Env      []string
	Dir      string
	User     string
	Terminal bool
	Stdin    io.Reader
	Stdout   io.Writer
	Stderr   io.Writer // joined with Stdout under a terminal
}

// LogReader is a Runtime that keeps its containers' output. Logs survive
// restarts of the program and of the container's removal, until RemoveLogs.
type LogReader interface {
	// Logs calls each for every line in order, at first the kept ones. It
	// returns nil after the last line, or, with Follow, after the container
	// has exited and its last line was delivered. An error from each ends
	// it and is returned.
	Logs(ctx context.Context, id string, opts LogOptions, each func(LogLine) error) error
	// RemoveLogs deletes what is kept for a container.
	RemoveLogs(ctx context.Context, id string) error
}

// LogOptions chooses lines.
type LogOptions struct {
	Follow bool
	Since  time.Time // lines of this time and later; zero: from the first kept line
	Tail   int       // 0: all; n: the last n kept lines, then on
}

// LogLine is one line of output, without its newline. A line longer than
// 16 KiB comes in pieces, all but the last marked Partial.
type LogLine struct {
	Time    time.Time
	Stream  string // "stdout" or "stderr"
	Text    []byte
	Partial bool
}

// StatsReader is a Runtime that can measure its containers.
type StatsReader interface {
	// Stats measures a container once, while it runs. One that is not
	// there is [ErrNotFound].
	Stats(ctx context.Context, id string) (Stats, error)
}

// Stats is a measurement of one running container.
type Stats struct {
	At          time.Time
	CPU         time.Duration // used since the start, over all cores
	Throttled   time.Duration // held back by the CPU limit since the start
	Memory      int64         // bytes in use, page cache that can be dropped left out
	MemoryLimit int64         // bytes; 0 when there is none
	Pids        int64
	ReadBytes   int64 // block I/O since the start
	WriteBytes  int64
	OOMKills    int64
}

// Importer is a Runtime that takes images from local files.
type Importer interface {
	// Import reads an OCI image layout or a "docker save" archive as a tar
	// stream, optionally compressed, and returns its images. Hostile
	// archives are refused whole, with an [*ArchiveError].
	Import(ctx context.Context, archive io.Reader) ([]Image, error)
	// RemoveImage deletes an image by reference. One that is not there is
	// not an error.
	RemoveImage(ctx context.Context, ref string) error
}

// Errors that a caller can act on.
var (
	ErrNotFound      = errors.New("no such container")
	ErrImageNotFound = errors.New("no such image")
	ErrUnauthorized  = errors.New("the registry refused the credentials")
	ErrPlatform      = errors.New("the image has no variant for this platform")
	ErrClosed        = errors.New("the runtime is closed")
)

// StartError says why a container's process could not be started: the
// command is not in the image, is not executable, the user is unknown, a
// mount's source is missing, and the like. Trying again without a change does
// not help when Permanent is set.
type StartError struct {
	ID        string
	Reason    string
	Permanent bool
	Err       error
}

func (e *StartError) Error() string { return fmt.Sprintf("start container %s: %s", e.ID, e.Reason) }

// Unwrap returns the runtime's own error.
func (e *StartError) Unwrap() error { return e.Err }

// SpecError is a spec that no runtime could run: the field and what would be
// right.
type SpecError struct {
	Field  string
	Reason string
}

func (e *SpecError) Error() string { return fmt.Sprintf("container spec: %s: %s", e.Field, e.Reason) }

// ArchiveError is an image archive that is damaged or hostile.
type ArchiveError struct {
	Entry  string // the entry of the archive, where there is one
	Reason string
	Err    error
}

func (e *ArchiveError) Error() string {
	if e.Entry == "" {
		return "image archive: " + e.Reason
	}
	return fmt.Sprintf("image archive: entry %q: %s", e.Entry, e.Reason)
}

// Unwrap returns the underlying error.
func (e *ArchiveError) Unwrap() error { return e.Err }
