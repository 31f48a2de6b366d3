package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/store"
)

// Access returns what [orchestrate.WithAccess] takes: the way to each node, at the
// address that its agent has put down in the store.
func Access(s store.Store, m *identity.Member) func(node string) (orchestrate.Access, error) {
	d := &dialer{store: s, member: m, nodes: map[string]*http.Client{}}
	return func(node string) (orchestrate.Access, error) {
		if err := (identity.ID{Role: identity.Node, Name: node}).Validate(); err != nil {
			return nil, fmt.Errorf("%w: %w", orchestrate.ErrNoAccess, err)
		}
		return &client{d, node}, nil
	}
}

// dialer keeps connections, one for each node that is talked to.
type dialer struct {
	store  store.Store
	member *identity.Member

	mu    sync.Mutex // guards nodes
	nodes map[string]*http.Client
}

// to returns the connection to a node. It is made when it is first needed, goes
// when it is idle, and is of this node alone, wherever its address leads.
func (d *dialer) to(node string) *http.Client {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.nodes[node]; c != nil {
		return c
	}
	config := d.member.Client(identity.Exactly(identity.ID{Role: identity.Node, Name: node}))
	config.NextProtos = []string{"h2"}
	c := &http.Client{Transport: &http.Transport{
		TLSClientConfig: config, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: time.Minute,
		HTTP2: &http.HTTP2Config{SendPingTimeout: beat, PingTimeout: beat},
	}}
	d.nodes[node] = c
	return c
}

// client is the way to one node. It implements [orchestrate.Access].
type client struct {
	*dialer
	node string
}

// call begins a call. The answer's body must be closed.
func (c *client) call(ctx context.Context, method, path string, query url.Values, body io.Reader) (io.ReadCloser, error) {
	item, found, err := store.Get(ctx, c.store, record.Key(record.Nodes, c.node))
	if err != nil {
		return nil, err
	}
	var rec record.Node
	if found {
		err = json.Unmarshal(item.Value, &rec)
	}
	if err == nil && rec.Address == "" {
		err = orchestrate.ErrNoAccess
	}
	if err != nil {
		return nil, fmt.Errorf("node %s: find its address: %w", c.node, err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+rec.Address+path+"?"+query.Encode(), body)
	if err != nil {
		return nil, err
	}
	resp, err := c.to(c.node).Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("node %s: %w", c.node, err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, &Error{Node: c.node, Message: resp.Status}
	}
	return resp.Body, nil
}

// Logs implements [orchestrate.Access]. Followed logs outlast connections.
func (c *client) Logs(ctx context.Context, task, container string, opts runtime.LogOptions, each func(runtime.LogLine) error) error {
	var last time.Time // of the last line that was handed on
	same := 0          // lines of that time
	pause := time.Duration(0)
	answered := false // once, so that the node is one that has these logs
	for {
		err := c.logs(ctx, task, container, opts, last, same, &answered, func(l runtime.LogLine) error {
			if !l.Time.Equal(last) {
				last, same = l.Time, 0
			}
			same++
			pause = 0
			if err := each(l); err != nil {
				return &callerError{err}
			}
			return nil
		})
		var theirs *callerError
		if errors.As(err, &theirs) {
			return theirs.err
		}
		if !opts.Follow || !errors.Is(err, ErrBroken) {
			return err
		}
		pause = min(max(2*pause, 100*time.Millisecond), 5*time.Second)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// callerError is an error of the caller's own function.
type callerError struct{ err error }

func (e *callerError) Error() string { return e.err.Error() }

// logs reads over one connection. With last, it goes on after as many lines of
// that time as were had.
func (c *client) logs(ctx context.Context, task, container string, opts runtime.LogOptions, last time.Time, had int, answered *bool, each func(runtime.LogLine) error) error {
	q := url.Values{"task": {task}, "container": {container}}
	if opts.Follow {
		q.Set("follow", "true")
	}
	switch {
	case !last.IsZero():
		q.Set("since", last.Format(time.RFC3339Nano))
	default:
		if !opts.Since.IsZero() {
			q.Set("since", opts.Since.Format(time.RFC3339Nano))
		}
		if opts.Tail > 0 {
			q.Set("tail", strconv.Itoa(opts.Tail))
		}
	}
	calling, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := c.call(calling, http.MethodGet, pathLogs, q, nil)
	if err != nil {
		if *answered && ctx.Err() == nil && !errors.Is(err, orchestrate.ErrNoAccess) {
			return &brokenError{c.node, err} // as it was: it may come back
		}
		return err
	}
	defer body.Close()
	*answered = true
	// A node that is gone without a word sends no beats.
	silent := time.AfterFunc(patience, cancel)
	defer silent.Stop()
	_, err = answer(ctx, c.node, watched{body, silent}, func(kind byte, data []byte) error {
		var l line
		if kind != frameLine {
			return nil
		}
		if err := json.Unmarshal(data, &l); err != nil {
			return fmt.Errorf("node %s: read a line: %w", c.node, err)
		}
		if had > 0 && l.Time.Equal(last) {
			had--
			return nil
		}
		return each(runtime.LogLine{Time: l.Time, Stream: l.Stream, Text: l.Text, Partial: l.Partial})
	})
	return err
}

// watched puts off a timer with everything that is read.
type watched struct {
	io.Reader
	silent *time.Timer
}

func (w watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if n > 0 {
		w.silent.Reset(patience)
	}
	return n, err
}

// Exec implements [orchestrate.Access].
func (c *client) Exec(ctx context.Context, task, container string, e runtime.Exec) (exitCode int, err error) {
	head, err := json.Marshal(command{
		Args: e.Args, Env: e.Env, Dir: e.Dir, User: e.User, Terminal: e.Terminal,
		Stdin: e.Stdin != nil, Stdout: e.Stdout != nil, Stderr: e.Stderr != nil,
	})
	if err != nil {
		return 0, err
	}
	if len(head) > maxFrame {
		return 0, fmt.Errorf("exec in %s: the command has %d bytes; want at most %d", task, len(head), maxFrame)
	}
	var body io.Reader = bytes.NewReader(append(head, '\n'))
	if e.Stdin != nil {
		body = io.MultiReader(body, e.Stdin)
	}
	calling, cancel := context.WithCancel(ctx)
	defer cancel()
	answered, err := c.call(calling, http.MethodPost, pathExec, url.Values{"task": {task}, "container": {container}}, struct{ io.Reader }{body})
	if err != nil {
		return 0, err
	}
	defer answered.Close()
	silent := time.AfterFunc(patience, cancel)
	defer silent.Stop()
	res, err := answer(ctx, c.node, watched{answered, silent}, func(kind byte, data []byte) error {
		var err error
		switch {
		case kind == frameStdout && e.Stdout != nil:
			_, err = e.Stdout.Write(data)
		case kind == frameStderr && e.Stderr != nil:
			_, err = e.Stderr.Write(data)
		}
		return err
	})
	return res.Code, err
}

// Stats implements [orchestrate.Access].
func (c *client) Stats(ctx context.Context, task, container string) (runtime.Stats, error) {
	calling, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body, err := c.call(calling, http.MethodGet, pathStats, url.Values{"task": {task}, "container": {container}}, nil)
	if err != nil {
		return runtime.Stats{}, err
	}
	defer body.Close()
	res, err := answer(ctx, c.node, body, func(byte, []byte) error { return nil })
	if err != nil || res.Stats == nil {
		return runtime.Stats{}, err
	}
	return *res.Stats, nil
}
