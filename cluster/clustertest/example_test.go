//go:build linux

package clustertest_test

import (
	"fmt"
	"os"
	"time"

	"github.com/orchestrate-go/orchestrate/cluster/clustertest"
)

// Three machines run a program; one of them is cut off for a while, and then its
// program is killed and started again.
func Example() {
	c, err := clustertest.New(clustertest.Options{Hosts: 3})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer c.Close()
	agent := clustertest.Program{Name: "agent", Path: "/usr/local/bin/myapp", Args: []string{"agent"}}
	for _, h := range c.Hosts() {
		if _, err := h.Start(agent); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
	}
	h := c.Host("n2")
	_ = h.Cut()
	time.Sleep(10 * time.Second)
	_ = h.Heal()
	_ = h.Process("agent").Kill()
	_, _ = h.Start(agent)
}
