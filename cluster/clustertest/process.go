//go:build linux

package clustertest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Program is what to run on a host.
type Program struct {
	// Name is the process's among those of the host; the base of Path when
	// empty. A process that ended gives its name to the next.
	Name string
	// Path and Args are the program and its arguments. The test itself is at
	// os.Executable.
	Path string
	Args []string
	// Env is added to the environment of this program.
	Env []string
	// Clock moves the monotonic and boot-time clocks that the process, and
	// what it starts, see. The sum with the machine's own must not be negative.
	Clock time.Duration
}

// Process is a program that runs on a host. Its output is in a file: see
// [Process.Output].
type Process struct {
	Name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // how; set before done is closed
}

// Start runs a program in the host's namespaces.
func (h *Host) Start(program Program) (*Process, error) {
	p, err := h.start(program)
	if err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", program.Path, h.Name, err)
	}
	return p, nil
}

func (h *Host) start(program Program) (*Process, error) {
	if program.Name == "" {
		program.Name = filepath.Base(program.Path)
	}
	h.cluster.mu.Lock() // no process begins after Close
	defer h.cluster.mu.Unlock()
	if h.cluster.closed {
		return nil, errors.New("the cluster is closed")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.processes {
		if p.Name == program.Name && p.Running() {
			return nil, fmt.Errorf("%s runs already", p.Name)
		}
	}
	p := &Process{
		Name: program.Name, done: make(chan struct{}), cmd: exec.Command(program.Path, program.Args...),
		log: h.cluster.folder(h.Name + "." + program.Name + ".log"),
	}
	file, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = file, file, "/"
	p.cmd.Env = append(os.Environ(), program.Env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = enter(func() error {
		if program.Clock != 0 {
			if err := moveClock(program.Clock); err != nil {
				return fmt.Errorf("move its clock: %w", err)
			}
		}
		return p.cmd.Start()
	}, h.mnt, h.net, h.uts)
	if err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	h.processes = append(h.processes, p)
	if program.Clock != 0 && !movedClock(p.cmd.Process.Pid) {
		_ = p.Kill()
		return nil, errors.New("move its clock: this kernel does not do it; want Linux 6.3 or newer")
	}
	return p, nil
}

// moveClock moves the clocks of what the calling thread starts. It applies when
// the child executes its program.
func moveClock(by time.Duration) error {
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return err
	}
	seconds, rest := by/time.Second, by%time.Second
	if rest < 0 {
		seconds, rest = seconds-1, rest+time.Second
	}
	offsets := fmt.Sprintf("monotonic %d %d\nboottime %d %d\n", seconds, rest, seconds, rest)
	return os.WriteFile(fmt.Sprintf("/proc/%d/timens_offsets", unix.Gettid()), []byte(offsets), 0)
}

func movedClock(pid int) bool {
	own, err1 := os.Readlink("/proc/self/ns/time")
	its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/time", pid))
	return err1 == nil && err2 == nil && own != its
}

// Process returns the host's newest process of a name, or nil.
func (h *Host) Process(name string) *Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := len(h.processes) - 1; i >= 0; i-- {
		if h.processes[i].Name == name {
			return h.processes[i]
		}
	}
	return nil
}

// PID is the process's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the process alone. One that has ended is no error.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %v to %s: %w", s, p.Name, err)
	}
	return nil
}

// Kill ends the process by SIGKILL and waits for it. What it started runs on.
func (p *Process) Kill() error {
	err := p.Signal(unix.SIGKILL)
	if err == nil {
		<-p.done
	}
	return err
}

// Stop stops the process by SIGSTOP, as a machine that is suspended, and
// Continue lets it go on.
func (p *Process) Stop() error { return p.Signal(unix.SIGSTOP) }

// Continue undoes Stop.
func (p *Process) Continue() error { return p.Signal(unix.SIGCONT) }

// Running reports whether the process has not ended. One that is stopped runs.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process and returns how it ended, as
// exec.Cmd.Wait does.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Output is what the process has written, and all of that name on its host before
// it, of which the newest bytes are kept at most.
func (p *Process) Output(most int) string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	if len(data) > most {
		data = data[len(data)-most:]
		if _, whole, ok := bytes.Cut(data, []byte("\n")); ok {
			data = whole
		}
	}
	return string(data)
}
