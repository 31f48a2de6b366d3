//go:build linux

package local

import (
	"cmp"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// someFailpoints are those of the short mode: one of each part.
var someFailpoints = []string{
	"applyStored", "planStored", "commitWritten", "containerStarted", "taskCreated", "namespaceFileMade",
	"rulesChanged", "mountRecorded", "containersRemoved",
}

// TestFailpoints kills a program exactly at each of its failpoints, with real
// containers, and looks each time at what the next program makes of it.
//
// A failpoint is a comment for go.etcd.io/gofail, of which a normal build knows
// nothing: "gofail: var NAME struct{}", and below it what happens there, die(). The
// test copies the module, has gofail make code of the comments, with a die that is
// SIGKILL, and builds the program that is killed from that.
//
// In the short mode it is someFailpoints, once each; with ORCHESTRATE_LONG all of
// them, 20 times, at a time drawn from those that an operation comes by.
// FAILPOINT_ROUNDS is another number, and FAILPOINTS other ones, as a regular
// expression; CRASH_SEED draws as another run did. Short of the deadline of the
// tests it ends, fails, and says how far it has come.
func TestFailpoints(t *testing.T) {
	rounds, wanted, seed := 1, "^("+strings.Join(someFailpoints, "|")+")$", uint64(time.Now().UnixNano())
	if os.Getenv("ORCHESTRATE_LONG") != "" {
		rounds, wanted = 20, ""
	}
	numbers(t, map[string]func(uint64){
		"FAILPOINT_ROUNDS": func(n uint64) { rounds = int(n) },
		"CRASH_SEED":       func(n uint64) { seed = n },
	})
	t.Logf("%d crashes at each failpoint, seed %d", rounds, seed)
	if text := os.Getenv("FAILPOINTS"); text != "" {
		wanted = text
	}
	p := &failpoints{
		crash: crash{t: t, dir: newFolder(t), random: rand.New(rand.NewPCG(seed, 1)), took: map[string]time.Duration{}, killed: map[string]int{}},
		hits:  map[string]map[string]int{}, kills: map[string]int{},
	}
	names := p.build(regexp.MustCompile(wanted))
	f := openAt(t, p.dir)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f, err := Open(p.dir)
		if err != nil {
			t.Fatal(err)
		}
		destroy(t, f)
	})
	for _, op := range failpointOperations {
		p.find(op, names)
	}
	for _, name := range names {
		if p.operations(name) == 0 {
			t.Errorf("failpoint %s: no operation comes by, so it proves nothing", name)
		}
	}
	deadline, limited := t.Deadline()
	for left := true; left && !t.Failed(); {
		if limited && time.Until(deadline) < time.Minute {
			t.Error("the time of the tests is up")
			break
		}
		left = false
		for _, op := range failpointOperations {
			name, due := p.next(op, names, rounds)
			if left = left || due; !t.Failed() {
				p.round(op, name)
			}
		}
	}
	least := 0
	if len(names) > 0 {
		least = p.kills[slices.MinFunc(names, func(a, b string) int { return p.kills[a] - p.kills[b] })]
	}
	var total int
	for _, name := range names {
		total += p.kills[name]
		t.Logf("failpoint %-20s killed the program %3d times", name, p.kills[name])
	}
	t.Logf("failpoints: %d, crashes: %d, at least %d at each; programs that ended before: %d; requests meanwhile: %d, lines acknowledged: %d",
		len(names), total, least, p.late, p.requests, len(p.acked))
}

// failpointOperations are done in turn, and together come by all failpoints. A
// restart is of a container that was killed while no program ran.
var failpointOperations = []string{"apply", "roll", "restart", "remove"}

// failpoints is the state of the test.
type failpoints struct {
	crash
	hits  map[string]map[string]int // by name and operation: how often one comes by
	kills map[string]int            // by name
}

var failpointComment = regexp.MustCompile(`(?m)^\t*// gofail: var (\w+) struct\{\}$`)

// build makes the program with those of its failpoints that are wanted, and
// returns their names, sorted.
func (p *failpoints) build(wanted *regexp.Regexp) (names []string) {
	t := p.t
	t.Helper()
	// gofail takes a folder's name for the package's.
	dir := filepath.Join(t.TempDir(), "orchestrate")
	if err := os.CopyFS(dir, module{os.DirFS("..")}); err != nil {
		t.Fatal(err)
	}
	enable := []string{"tool", "gofail", "enable"}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found := failpointComment.FindAllSubmatch(text, -1)
		if len(found) == 0 {
			return nil
		}
		for _, name := range found {
			if wanted.Match(name[1]) {
				names = append(names, string(name[1]))
			}
		}
		enable = append(enable, path)
		in := filepath.Dir(path)
		return os.WriteFile(filepath.Join(in, "die.fail.go"), fmt.Appendf(nil, dieSource, filepath.Base(in)), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	p.binary = filepath.Join(filepath.Dir(dir), "program")
	for _, args := range [][]string{enable, {"test", "-c", "-o", p.binary, "./local"}} {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", args[0], err, out)
		}
	}
	return names
}

const dieSource = `package %s

import "syscall"

// die ends the process here and now: nothing that is deferred is done.
func die() {
	syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	select {}
}
`

// module is a checkout without what is not Go's.
type module struct{ fs.FS }

func (m module) Open(name string) (fs.File, error) { return m.FS.Open(name) }

func (m module) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(m.FS, name)
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return strings.HasPrefix(e.Name(), ".") || !e.IsDir() && !e.Type().IsRegular()
	}), err
}

// find does an operation to its end and counts how often it comes by each
// failpoint.
func (p *failpoints) find(op string, names []string) {
	p.t.Helper()
	var print []string
	for _, name := range names {
		print = append(print, name+"=print")
	}
	program := p.begin(op, strings.Join(print, ";"))
	for word := range program.lines {
		if word == "done" {
			break
		}
	}
	time.Sleep(observed)
	program.kill()
	if program.cmd.ProcessState.ExitCode() > 0 {
		p.t.Fatalf("%s: the program failed", op)
	}
	p.check("undisturbed "+op, op, true)
	for name, n := range program.hits {
		if p.hits[name] == nil {
			p.hits[name] = map[string]int{}
		}
		p.hits[name][op] = n
	}
}

// observed is for how long after an operation the program is looked at: what it
// clears up then is part of it.
const observed = time.Second

func (p *failpoints) operations(name string) int { return len(p.hits[name]) }

// next returns the failpoint to kill at in an operation, of those with the fewest
// kills the one that the fewest operations come by; and whether there is one at all.
// Without one it is an empty name: the operations need each other.
func (p *failpoints) next(op string, names []string, rounds int) (name string, due bool) {
	var behind []string
	for _, n := range names {
		if p.hits[n][op] > 0 && p.kills[n] < rounds {
			behind = append(behind, n)
		}
	}
	if len(behind) == 0 {
		return "", false
	}
	return slices.MinFunc(behind, func(a, b string) int {
		return cmp.Or(p.kills[a]-p.kills[b], p.operations(a)-p.operations(b), strings.Compare(a, b))
	}), true
}

// begin starts an operation with these failpoints set.
func (p *failpoints) begin(op, set string) *program {
	p.t.Helper()
	switch op {
	case "apply", "roll":
		p.version++
	case "restart":
		for pid := range p.cgroupProcesses() {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				p.t.Fatal(err)
			}
			break
		}
	}
	return p.start(op, "GOFAIL_FAILPOINTS="+set)
}

// round does an operation, kills its program at the failpoint, and checks.
func (p *failpoints) round(op, name string) {
	p.t.Helper()
	if name == "" && op == "restart" {
		return
	}
	what, set, nth := op, "", 0
	if name != "" {
		nth = p.random.IntN(p.hits[name][op])
		what, set = fmt.Sprintf("%s, killed at %s for the %d. time", op, name, nth+1), name+"=return"
		if nth > 0 {
			set = fmt.Sprintf("%s=%d*off->return", name, nth)
		}
	}
	asked := op
	if op == "restart" {
		asked = "apply" // not at all: who answered may have been killed
	}
	load := p.load(asked)
	program := p.begin(op, set)
	stored, died := false, false
	patience := (<-chan time.Time)(nil)
	for running := true; running; {
		select {
		case word, ok := <-program.lines:
			running, died = ok, !ok
			stored = stored || word == "stored"
			if word == "done" {
				patience = time.After(observed)
			}
		case <-patience:
			running = false
		}
	}
	program.kill()
	load.stop()
	switch {
	case !died:
		p.late++
		if name != "" {
			// It came by less often than before.
			if p.hits[name][op] = nth; nth == 0 {
				delete(p.hits[name], op)
			}
		}
	case program.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		p.kills[name]++
	default:
		p.t.Fatalf("%s: the program failed: %v", what, program.cmd.ProcessState)
	}
	p.requests += load.requests
	for _, err := range load.failed {
		p.t.Errorf("%s: a request failed: %v", what, err)
	}
	p.acked = append(p.acked, load.acked...)
	p.check(what, op, stored)
	if p.t.Failed() {
		p.t.Logf("failed in: %s; killed so far: %v", what, p.kills)
	}
}
