//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A session does what its lines say, says what it cannot do, and leaves nothing.
func TestSession(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this needs root")
	}
	// "clean" is for the machine: the tests of the library take turns with this.
	turn, err := os.Open("..")
	if err == nil {
		defer turn.Close()
		err = unix.Flock(int(turn.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	lines := strings.Join([]string{
		"status", "cut n1", "heal n1", "part n1 n2", "heal", "lose n1 - 0.5", "delay n1 1ms", "fill n1", "free n1", "kill n2", "start n2",
		"stop n2", "cont n2", "exec n1 hostname", "cut n9", "shrink n1", "fill",
	}, "\n")
	if err := run([]string{"run", "-hosts", "2", "-shaped", "-disk", "1048576", "-dir", t.TempDir(), "--", "sleep", "1000"}, strings.NewReader(lines), &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	got := out.String()
	for _, want := range []string{"n1\t198.1", "\nn1\n", `cut: there is no host "n9"`, `there is no command "shrink"`, `fill: there is no host ""`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in what it says:\n%s", want, got)
		}
	}
	if n := strings.Count(got, "there is no"); n != 3 {
		t.Errorf("%d lines failed, want 3:\n%s", n, got)
	}
	out.Reset()
	if err := run([]string{"clean"}, nil, &out); err != nil || out.Len() > 0 {
		t.Errorf("clean after the end: %v, %s", err, out.String())
	}
	if err := run(nil, nil, &out); fmt.Sprint(err) != errUsage.Error() {
		t.Errorf("without a word: %v", err)
	}
}
