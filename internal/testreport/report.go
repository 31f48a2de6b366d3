// Package main is testreport: it reads what "go test -json" writes, shows a person
// which packages passed and all that the tests said that failed, and ends with
// what was run: how many tests and random cases, and each seed, fault, step and
// crash that a test told of.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	r := newReport(os.Stdout)
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
	r.end()
	if r.failed > 0 || r.passed == 0 { // that nothing ran is no success
		os.Exit(1)
	}
}

// event is a line of "go test -json"; see cmd/test2json.
type event struct {
	Action     string
	Package    string
	ImportPath string // of what a build says
	Test       string
	Output     string
	Elapsed    float64 // seconds
}

type report struct {
	out             io.Writer
	said            map[string][]string // by package and test, until it has ended
	told            []string
	passed, failed  int
	skipped         []string
	properties, all int // of rapid, and its cases
}

func newReport(out io.Writer) *report { return &report{out: out, said: map[string][]string{}} }

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return err
		}
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(r.out, "%s", line) // not of a test: what the tool itself says
			} else {
				r.see(e)
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

// A test's log line, which has a file and a line number before it.
var logged = regexp.MustCompile(`^\s*[\w.]+\.go:\d+: (.*)`)

// What a test may tell that it ran.
var ran = regexp.MustCompile(`\b(seeds?|crash(es|ed)?|faults?|steps|states|cases|failpoints?|kill(s|ed)|lost|histories)\b`)

var property = regexp.MustCompile(`\[rapid\] OK, passed (\d+) tests`)

func (r *report) see(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		r.said[key] = append(r.said[key], e.Output)
		if m := property.FindStringSubmatch(e.Output); m != nil {
			n, _ := strconv.Atoi(m[1]) // digits
			r.properties, r.all = r.properties+1, r.all+n
		} else if m := logged.FindStringSubmatch(e.Output); m != nil && ran.MatchString(m[1]) {
			r.told = append(r.told, fmt.Sprintf("%s %s: %s", e.Package[strings.LastIndex(e.Package, "/")+1:], e.Test, m[1]))
		}
	case "pass", "skip", "fail":
		if e.Action == "fail" {
			r.tell(key)
		}
		delete(r.said, key)
		if e.Test == "" {
			// Those that had not ended when their process did.
			for _, key := range slices.Sorted(maps.Keys(r.said)) {
				if strings.HasPrefix(key, e.Package+" ") {
					r.tell(key)
					delete(r.said, key)
				}
			}
			took := time.Duration(e.Elapsed * float64(time.Second)).Round(100 * time.Millisecond)
			fmt.Fprintf(r.out, "%-4s  %8v  %s\n", e.Action, took, e.Package)
		}
		switch {
		case e.Action == "fail":
			r.failed++
		case e.Test == "":
		case e.Action == "skip":
			r.skipped = append(r.skipped, e.Package+" "+e.Test)
		default:
			r.passed++
		}
	}
}

// tell writes what a test has said.
func (r *report) tell(key string) {
	for _, line := range r.said[key] {
		fmt.Fprint(r.out, line)
	}
}

// end writes what was run.
func (r *report) end() {
	fmt.Fprintf(r.out, "ran: %d tests passed, %d failed or did not build, %d skipped\n", r.passed, r.failed, len(r.skipped))
	for _, test := range r.skipped {
		fmt.Fprintf(r.out, "  skipped: %s\n", test)
	}
	if r.properties > 0 {
		fmt.Fprintf(r.out, "  %d properties held in %d random cases\n", r.properties, r.all)
	}
	slices.Sort(r.told)
	for _, line := range slices.Compact(r.told) {
		fmt.Fprintf(r.out, "  %s\n", line)
	}
}
