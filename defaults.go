package orchestrate

import (
	"fmt"
	"reflect"
	"time"

	"github.com/orchestrate-go/orchestrate/health"
)

// The defaults of a [Service] that are more than a name.
const (
	DefaultNamespace        = "default"
	DefaultNetwork          = "default"
	DefaultStrategy         = "spread"
	DefaultPids             = 4096
	DefaultStopGrace        = 10 * time.Second
	DefaultDrainDelay       = time.Second // with ports; else none
	DefaultRestarts         = 10
	DefaultBackoff          = 100 * time.Millisecond
	DefaultMaxBackoff       = 5 * time.Minute
	DefaultReset            = 10 * time.Minute
	DefaultMonitor          = 10 * time.Second
	DefaultBake             = 5 * time.Minute // of a blue/green change
	DefaultProgressDeadline = 10 * time.Minute
	DefaultLogBytes         = 16 * MiB
	DefaultLogFiles         = 2
	DefaultTmpfsMode        = 0o1777
)

// WithDefaults returns a copy of s with the default of every unset field
// filled in, as it is stored, so that a later version of this library with
// other defaults changes nothing that runs. The copy shares no memory with s.
// Empty lists and maps become nil. Doing it again changes nothing.
//
// Update.Parallelism, MaxSurge, MaxUnavailable and MaxFailures stay unset where
// they are, since they follow the number of replicas, which may change without
// them.
func (s Service) WithDefaults() Service {
	s = clone(reflect.ValueOf(s)).Interface().(Service)
	setDefault(&s.Namespace, DefaultNamespace)
	if s.Mode != Global {
		setDefault(&s.Replicas, 1)
	}
	if st := s.Stateful; st != nil {
		setDefault(&st.Order, OrderedSlots)
		setDefault(&st.WhenScaled, RetainVolumes)
		setDefault(&st.WhenRemoved, RetainVolumes)
	}
	s.Template.fill()
	setDefault(&s.Update.Strategy, RollingUpdate)
	switch s.Update.Strategy {
	case CanaryUpdate:
		setDefault(&s.Update.Canary.Tasks, "1")
	case BlueGreenUpdate:
		setDefault(&s.Update.BlueGreen.Bake, DefaultBake)
	}
	setDefault(&s.Update.Order, OrderAuto)
	setDefault(&s.Update.Monitor, DefaultMonitor)
	setDefault(&s.Update.ProgressDeadline, DefaultProgressDeadline)
	setDefault(&s.Update.OnFailure, RollBack)
	fillDependencies(s.DependsOn)
	if s.Mode != Global {
		s.LossPolicy.fill()
	}
	if s.Autoscale != nil {
		*s.Autoscale = s.Autoscale.WithDefaults()
	}
	return s
}

// WithDefaults returns a copy of n that shares no memory with it. Subnets and
// MTU stay unset where they are: the fleet and the driver choose them.
func (n Network) WithDefaults() Network {
	return clone(reflect.ValueOf(n)).Interface().(Network)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// fill fills in the defaults of t, which must be a copy of its own.
func (t *Template) fill() {
	for i := range t.Init {
		t.Init[i].fill(fmt.Sprintf("init%d", i))
	}
	for i := range t.Sidecars {
		t.Sidecars[i].fill(fmt.Sprintf("sidecar%d", i))
	}
	for i := range t.Containers {
		name := "main"
		if i > 0 {
			name = fmt.Sprintf("main%d", i)
		}
		t.Containers[i].fill(name)
	}
	if len(t.Networks) == 0 && !t.HostNetwork {
		t.Networks = []string{DefaultNetwork}
	}
	for i := range t.Ports {
		p := &t.Ports[i]
		if !t.HostNetwork {
			setDefault(&p.Virtual, p.Port)
		}
		setDefault(&p.Protocol, TCP)
	}
	t.Restart.fill()
	setDefault(&t.Placement.Strategy, DefaultStrategy)
	setDefault(&t.StopGrace, DefaultStopGrace)
	if len(t.Ports) > 0 {
		setDefault(&t.DrainDelay, DefaultDrainDelay)
	}
}

func (c *Container) fill(name string) {
	setDefault(&c.Name, name)
	r := &c.Resources
	setDefault(&r.CPU, max(r.CPULimit, 0))
	setDefault(&r.Memory, max(r.MemoryLimit, 0))
	setDefault(&r.Pids, DefaultPids)
	for i := range c.Devices {
		setDefault(&c.Devices[i].Target, c.Devices[i].Source)
		setDefault(&c.Devices[i].Permissions, "rwm")
	}
	for i := range c.Mounts {
		if t := c.Mounts[i].Tmpfs; t != nil {
			setDefault(&t.Mode, DefaultTmpfsMode)
		}
	}
	for _, check := range []*health.Check{c.Startup, c.Readiness, c.Liveness} {
		if check != nil {
			*check = check.WithDefaults()
		}
	}
	setDefault(&c.Logs.MaxBytes, DefaultLogBytes)
	setDefault(&c.Logs.MaxFiles, DefaultLogFiles)
}

// fill keeps Backoff and MaxBackoff in order when only one of them is given.
func (r *RestartPolicy) fill() {
	setDefault(&r.Condition, RestartAlways)
	setDefault(&r.Attempts, DefaultRestarts)
	if r.Backoff == 0 {
		r.Backoff = DefaultBackoff
		if r.MaxBackoff > 0 {
			r.Backoff = min(r.Backoff, r.MaxBackoff)
		}
	}
	setDefault(&r.MaxBackoff, max(DefaultMaxBackoff, r.Backoff))
	setDefault(&r.Reset, DefaultReset)
}
