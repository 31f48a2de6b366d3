//go:build linux

package bridge

import (
	"fmt"
	"os"
)

// childEnv makes this binary do something else than test, as a process that
// can be killed.
const childEnv = "BRIDGE_TEST_CHILD"

func childMain() {
	var err error
	switch mode := os.Getenv(childEnv); mode {
	case "serve":
		err = serveChild()
	case "attach":
		err = attachChild()
	default:
		err = fmt.Errorf("unknown mode %q", mode)
	}
	fmt.Fprintln(os.Stderr, "child:", err)
	os.Exit(1)
}
