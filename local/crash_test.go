//go:build linux

package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/health"
)

// TestCrash kills a program with SIGKILL at random moments of an Apply, of a
// rolling change and of a Remove, in turn and in one folder, and looks each
// time at what the next program makes of it.
//
// It goes on until CRASH_ROUNDS programs were killed in the middle of each, by
// default 3 or, with ORCHESTRATE_LONG set, 50; CRASH_SEED draws the moments of
// another run again.
func TestCrash(t *testing.T) {
	rounds := 3
	if os.Getenv("ORCHESTRATE_LONG") != "" {
		rounds = 50
	}
	seed := uint64(time.Now().UnixNano())
	numbers(t, map[string]func(uint64){
		"CRASH_ROUNDS": func(n uint64) { rounds = int(n) },
		"CRASH_SEED":   func(n uint64) { seed = n },
	})
	t.Logf("%d rounds of each operation, seed %d", rounds, seed)
	c := &crash{
		t: t, dir: newFolder(t), binary: "/proc/self/exe", random: rand.New(rand.NewPCG(seed, 0)),
		took: map[string]time.Duration{}, killed: map[string]int{},
	}
	f := openAt(t, c.dir)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f, err := Open(c.dir)
		if err != nil {
			t.Fatal(err)
		}
		destroy(t, f)
	})
	// How long each takes when nobody kills it says from where to draw.
	for _, op := range operations {
		c.measure(op)
	}
	for round := 0; slices.Min(slices.Collect(maps.Values(c.killed))) < rounds && !t.Failed(); round++ {
		if round > 3*rounds+10 {
			t.Fatalf("programs killed in the middle, of %d each: %v; the rest had ended before", round, c.killed)
		}
		for _, op := range operations {
			if c.round(round, op); t.Failed() {
				break
			}
		}
	}
	t.Logf("crashes: programs killed in the middle of each operation: %v, while they recovered: %d; had ended before: %d; requests while the program was killed and away: %d, lines acknowledged: %d",
		c.killed, c.killedAgain, c.late, c.requests, len(c.acked))
}

// numbers sets what the environment has numbers for, by name.
func numbers(t *testing.T, set map[string]func(uint64)) {
	t.Helper()
	for name, set := range set {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			set(n)
		}
	}
}

// The operations that programs are killed in, in the order that makes each
// possible.
var operations = []string{"apply", "roll", "remove"}

// crash is the state of the test.
type crash struct {
	t      *testing.T
	dir    string
	binary string // the program that is killed
	random *rand.Rand
	took   map[string]time.Duration // by operation
	// version is of the service that was applied last.
	version int

	killed            map[string]int // by operation: in the middle of it
	killedAgain, late int
	requests          int
	acked             []string // lines that are in the volume for ever
}

const (
	crashReplicas = 3
	crashPort     = 8090
)

// crashService has a volume that its tasks share, and a version to roll.
func crashService(version int) orchestrate.Service {
	s := service("web", crashReplicas)
	s.Ports[0].Published = crashPort
	s.Containers[0].Env = map[string]string{"VERSION": strconv.Itoa(version)}
	s.Containers[0].Mounts = []orchestrate.Mount{
		{Target: "/data", Volume: "lines"},
		{Target: "/scratch", Volume: fmt.Sprint("scratch-", version)},
	}
	s.Containers[0].Command = []string{"line=start", "serve"}
	s.Containers[0].Liveness = &health.Check{HTTP: &health.HTTP{Port: 8080, Path: "/healthy?liveness"}, Interval: time.Second}
	s.StopGrace = time.Second
	return s
}

// crashProgram is what the killed process does: "OPERATION VERSION FOLDER".
// It says "begin" when the fleet is open, "stored" when the call has returned,
// and "done" when the rollout has ended. Then it waits to be killed.
func crashProgram(what string) error {
	op, rest, _ := strings.Cut(what, " ")
	number, dir, _ := strings.Cut(rest, " ")
	version, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	f, err := Open(dir)
	if err != nil {
		return err
	}
	fmt.Println("begin")
	ctx := context.Background()
	switch op {
	case "apply", "roll":
		err = f.Apply(ctx, crashService(version))
	case "remove":
		err = f.Remove(ctx, "web")
	case "recover", "restart":
	}
	if err != nil {
		return err
	}
	fmt.Println("stored")
	switch op {
	case "recover":
	case "restart":
		if err := settled(ctx, f); err != nil {
			return err
		}
	default:
		r, err := f.Wait(ctx, "web")
		if err == nil {
			err = r.Err()
		}
		if err != nil && !(op == "remove" && errors.Is(err, orchestrate.ErrNotFound)) {
			return err
		}
	}
	fmt.Println("done")
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, f.Close())
}

// settled waits until all containers are ready, and are those that run: one that
// was killed while no program ran is ready by the last that was said of it.
func settled(ctx context.Context, f *Fleet) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	events, err := f.Watch(ctx)
	if err != nil {
		return err
	}
	for {
		list, err := f.Tasks(ctx, "web")
		if err != nil {
			return err
		}
		up := func(t orchestrate.Task) bool {
			return t.State == orchestrate.Ready && len(t.Containers) == 1 && t.Containers[0].Running && lives(t.Containers[0].PID)
		}
		list = slices.DeleteFunc(list, func(t orchestrate.Task) bool { return !up(t) })
		if len(list) == crashReplicas {
			return nil
		}
		if _, ok := <-events; !ok {
			return fmt.Errorf("%d of %d tasks are ready: %w", len(list), crashReplicas, context.Cause(ctx))
		}
	}
}

// lives reports whether a process is there, and has not ended.
func lives(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// proc_pid_stat(5): the state follows the name, which is in brackets.
	_, state, _ := strings.Cut(string(stat[max(0, strings.LastIndexByte(string(stat), ')')):]), " ")
	return err == nil && state != "" && state[0] != 'Z' && state[0] != 'X'
}

// program is a started crashProgram.
type program struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	lines chan string    // what it said; closed at its end
	hits  map[string]int // failpoints that it came by, once lines is closed
}

func (c *crash) start(op string, env ...string) *program {
	c.t.Helper()
	cmd := exec.Command(c.binary)
	cmd.Env = append(append(os.Environ(), fmt.Sprintf("%s=%s %d %s", envProgram, op, c.version, c.dir)), env...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	p := &program{t: c.t, cmd: cmd, stdin: stdin, lines: make(chan string, 3), hits: map[string]int{}}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			if name, ok := strings.CutPrefix(s.Text(), "failpoint print: "); ok {
				p.hits[name]++
				continue
			}
			p.lines <- s.Text()
		}
	}()
	return p
}

// expect waits for a word of the program.
func (p *program) expect(want string) {
	p.t.Helper()
	if got, ok := <-p.lines; !ok || got != want {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		p.t.Fatalf("the program said %q, want %q", got, want)
	}
}

// kill kills the program and returns what it had said that was not expected
// yet.
func (p *program) kill() (said []string) {
	p.cmd.Process.Kill()
	for line := range p.lines {
		said = append(said, line)
	}
	p.cmd.Wait()
	p.stdin.Close()
	return said
}

// measure does an operation to its end, and then kills its program as well.
func (c *crash) measure(op string) {
	c.t.Helper()
	if op != "remove" {
		c.version++
	}
	p := c.start(op)
	p.expect("begin")
	began := time.Now()
	p.expect("stored")
	p.expect("done")
	c.took[op], c.killed[op] = time.Since(began), 0
	p.kill()
	c.t.Logf("%s takes %v when it is not disturbed", op, c.took[op].Round(time.Millisecond))
	c.check("undisturbed "+op, op, true)
}

// round kills a program in the middle of an operation, some of the ones that
// recover from it too, and checks.
func (c *crash) round(n int, op string) {
	c.t.Helper()
	if op != "remove" {
		c.version++
	}
	after := time.Duration(c.random.Int64N(int64(c.took[op])))
	what := fmt.Sprintf("%s %d, killed after %v", op, n, after.Round(10*time.Microsecond))
	// Of every three, one program that opens the fleet after it is killed too.
	again := time.Duration(c.random.Int64N(int64(300 * time.Millisecond)))
	twice := c.random.IntN(3) == 0
	if twice {
		what += fmt.Sprintf(", and the next after %v", again.Round(10*time.Microsecond))
	}
	c.t.Log(what)
	load := c.load(op)
	p := c.start(op)
	p.expect("begin")
	time.Sleep(after) // it is the moment that is random
	said := p.kill()
	stored := slices.Contains(said, "stored")
	if slices.Contains(said, "done") {
		c.late++
	} else {
		c.killed[op]++
	}
	if twice {
		p := c.start("recover")
		time.Sleep(again)
		p.kill()
		c.killedAgain++
	}
	load.stop()
	c.requests += load.requests
	for _, err := range load.failed {
		c.t.Errorf("%s: a request failed: %v", what, err)
	}
	c.acked = append(c.acked, load.acked...)
	c.check(what, op, stored)
	if c.t.Failed() {
		c.t.Logf("failed in: %s", what)
	}
}

// appender sends requests to the service as long as it has tasks.
type appender struct {
	quit     chan struct{}
	ended    sync.WaitGroup
	requests int
	acked    []string
	failed   []error
}

func (l *appender) stop() {
	close(l.quit)
	l.ended.Wait()
}

// load begins to append lines through the published port.
func (c *crash) load(op string) *appender {
	l := &appender{quit: make(chan struct{})}
	if op == "apply" {
		return l // there is nothing yet
	}
	prefix := fmt.Sprintf("%s-%d-", op, c.random.Uint32())
	// Long, for a line is acknowledged when the disk has it.
	patient := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	l.ended.Go(func() {
		pace := time.NewTicker(5 * time.Millisecond)
		defer pace.Stop()
		for {
			select {
			case <-l.quit:
				return
			case <-pace.C:
			}
			line := prefix + strconv.Itoa(l.requests)
			l.requests++
			resp, err := patient.Get(fmt.Sprintf("http://127.0.0.1:%d/append?%s", crashPort, line))
			if err == nil {
				var answer []byte
				answer, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					err = fmt.Errorf("status %s: %s", resp.Status, answer)
				}
			}
			switch {
			case err == nil:
				l.acked = append(l.acked, line)
			case op == "remove":
				return // its tasks are stopped, as they should
			default:
				l.failed = append(l.failed, fmt.Errorf("%s: %w", line, err))
			}
		}
	})
	return l
}
