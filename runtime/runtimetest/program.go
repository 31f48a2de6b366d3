package runtimetest

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// Program is the process of the containers that the suite starts. It is a
// function so that an in-memory runtime can run it as it is; for a real one,
// build the main package in testdata/program, which only calls it, as a
// static binary, and make an image of that whose entrypoint is the binary.
//
// Its arguments are words of a small language, done from left to right; the
// process exits with 0 after the last:
//
//	print=TEXT        a line on stdout
//	error=TEXT        a line on stderr
//	lines=N           N lines "line 1" … on stdout
//	long=N            a line of N letters x on stdout
//	cat               stdin to stdout
//	env=NAME          the variable's value, a line on stdout
//	id                a line "uid gid" on stdout
//	hostname          the hostname, a line on stdout
//	pwd               the working directory, a line on stdout
//	status=FIELD      a field of /proc/self/status, a line on stdout
//	read=PATH         the file's content on stdout
//	write=PATH        a file; a line "written" or the error on stdout
//	stat=PATH         a line "exists" or the error on stdout
//	eat=MIB           that much memory, touched
//	sleep=DURATION    wait
//	wait              for a signal: a line "got N" on stdout, then on
//	ignore            signals, until SIGKILL
//	exit=N            exit at once with that code
type Program struct {
	Args    []string
	Env     []string
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Signals <-chan runtime.Signal
	// System is nil in memory: what only a kernel can tell is then answered
	// with an error.
	System System
}

// System is what of the machine a Program looks at.
type System interface {
	ID() (uid, gid int)
	Hostname() (string, error)
	Getwd() (string, error)
	ReadFile(name string) ([]byte, error)
	WriteFile(name string, data []byte, mode os.FileMode) error
	Stat(name string) (os.FileInfo, error)
	Eat(bytes int)
}

// Run runs the program and returns its exit code. It ends early, with 137,
// when ctx ends.
func (p Program) Run(ctx context.Context) int {
	for _, arg := range p.Args {
		word, value, _ := strings.Cut(arg, "=")
		n, _ := strconv.Atoi(value)
		say := func(format string, args ...any) { fmt.Fprintf(p.Stdout, format+"\n", args...) }
		switch word {
		case "print":
			say("%s", value)
		case "error":
			fmt.Fprintln(p.Stderr, value)
		case "lines":
			for i := range n {
				say("line %d", i+1)
			}
		case "long":
			say("%s", strings.Repeat("x", n))
		case "cat":
			if _, err := io.Copy(p.Stdout, p.Stdin); err != nil {
				return 1
			}
		case "env":
			got := ""
			for _, e := range p.Env {
				if k, v, _ := strings.Cut(e, "="); k == value {
					got = v
				}
			}
			say("%s", got)
		case "eat":
			if p.System == nil {
				return 1
			}
			p.System.Eat(n << 20)
		case "sleep":
			d, err := time.ParseDuration(value)
			if err != nil {
				return 2
			}
			timer := time.NewTimer(d)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return 137
			}
		case "wait":
			select {
			case s := <-p.Signals:
				say("got %d", s)
			case <-ctx.Done():
				return 137
			}
		case "ignore":
			for {
				select {
				case <-p.Signals:
				case <-ctx.Done():
					return 137
				}
			}
		case "exit":
			return n
		case "id", "hostname", "pwd", "status", "read", "write", "stat":
			if p.System == nil {
				say("no system")
				continue
			}
			say("%s", p.look(word, value))
		default:
			fmt.Fprintf(p.Stderr, "unknown word %q\n", arg)
			return 2
		}
	}
	return 0
}

func (p Program) look(word, value string) string {
	var text string
	var err error
	switch word {
	case "id":
		uid, gid := p.System.ID()
		text = fmt.Sprintf("%d %d", uid, gid)
	case "hostname":
		text, err = p.System.Hostname()
	case "pwd":
		text, err = p.System.Getwd()
	case "status":
		var file []byte
		file, err = p.System.ReadFile("/proc/self/status")
		for line := range strings.SplitSeq(string(file), "\n") {
			if k, v, _ := strings.Cut(line, ":"); k == value {
				text = strings.TrimSpace(v)
			}
		}
	case "read":
		var file []byte
		file, err = p.System.ReadFile(value)
		text = strings.TrimSuffix(string(file), "\n")
	case "write":
		text, err = "written", p.System.WriteFile(value, []byte("x"), 0o600)
	case "stat":
		text = "exists"
		_, err = p.System.Stat(value)
	}
	if err != nil {
		return err.Error()
	}
	return text
}
