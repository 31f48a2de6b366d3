package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ledger is written to in one slot, entry by entry: each until the server has
// acknowledged it, over all that happens to the server meanwhile.
type ledger struct {
	demo *demonstration
	slot int

	acknowledged atomic.Int64 // entries 1 to this one
	cancel       context.CancelFunc
	done         sync.WaitGroup
}

func (l *ledger) start(ctx context.Context) {
	ctx, l.cancel = context.WithCancel(ctx)
	l.done.Go(func() {
		var c *connection
		for ctx.Err() == nil {
			var err error
			if c == nil {
				c, err = l.connect(ctx)
			}
			if err == nil {
				n := strconv.FormatInt(l.acknowledged.Load()+1, 10)
				if _, err = c.do("ZADD", "ledger", n, n); err == nil {
					l.acknowledged.Add(1)
				}
			}
			pause := 2 * time.Millisecond
			if err != nil {
				if c != nil {
					c.Close()
				}
				c, pause = nil, 50*time.Millisecond
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
		if c != nil {
			c.Close()
		}
	})
}

func (l *ledger) stop() {
	if l.cancel != nil {
		l.cancel()
		l.done.Wait()
	}
}

// verify reads back everything that was acknowledged before the call.
func (l *ledger) verify(ctx context.Context) (int64, error) {
	want := l.acknowledged.Load()
	c, err := l.connect(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	reply, err := c.do("ZCOUNT", "ledger", "1", strconv.FormatInt(want, 10))
	if err != nil {
		return 0, err
	}
	if got, err := strconv.ParseInt(reply, 10, 64); err != nil || got != want || want == 0 {
		return 0, fmt.Errorf("db-%d holds %s of the %d entries that it has acknowledged", l.slot, reply, want)
	}
	return want, nil
}

// connection speaks the protocol of Redis, as much of it as is needed here.
type connection struct {
	net.Conn
	r *bufio.Reader
}

// connect goes to wherever the slot is now.
func (l *ledger) connect(ctx context.Context) (*connection, error) {
	t, err := l.demo.task(ctx, l.slot)
	if err != nil {
		return nil, err
	}
	for _, a := range t.Addresses["default"] {
		if !a.Is4() {
			continue
		}
		d := net.Dialer{Timeout: time.Second}
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(a.String(), "6379"))
		if err != nil {
			return nil, err
		}
		return &connection{conn, bufio.NewReader(conn)}, nil
	}
	return nil, fmt.Errorf("db-%d has no address", l.slot)
}

// do sends a command and returns its reply, which is of one line.
func (c *connection) do(args ...string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte(b.String())); err != nil {
		return "", err
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '-' {
		return "", fmt.Errorf("the server says %q", line)
	}
	return line[1:], nil
}
