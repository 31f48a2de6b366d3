//go:build unix

package etcdtest

import "syscall"

// Stop stops member i as it is, and Continue lets it go on.
func (c *Cluster) Stop(i int) { c.signal(i, syscall.SIGSTOP) }

// Continue undoes Stop.
func (c *Cluster) Continue(i int) { c.signal(i, syscall.SIGCONT) }

func (c *Cluster) signal(i int, s syscall.Signal) {
	if err := c.members[i].process.Process.Signal(s); err != nil {
		c.t.Errorf("signal %v to member %s: %v", s, c.members[i].opts.Name, err)
	}
}
