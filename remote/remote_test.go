package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tasks is what a node has: the functions that a test needs.
type tasks struct {
	logs  func(ctx context.Context, opts runtime.LogOptions, each func(runtime.LogLine) error) error
	exec  func(ctx context.Context, e runtime.Exec) (int, error)
	stats runtime.Stats
}

func (k *tasks) check(task string) error {
	switch task {
	case "gone":
		return fmt.Errorf("task %q: %w", task, orchestrate.ErrNotFound)
	case "stopped":
		return fmt.Errorf("task %q: %w", task, orchestrate.ErrNotRunning)
	}
	return nil
}

func (k *tasks) Logs(ctx context.Context, task, container string, opts runtime.LogOptions, each func(runtime.LogLine) error) error {
	if err := k.check(task); err != nil {
		return err
	}
	return k.logs(ctx, opts, each)
}

func (k *tasks) Exec(ctx context.Context, task, container string, e runtime.Exec) (int, error) {
	if err := k.check(task); err != nil {
		return 0, err
	}
	return k.exec(ctx, e)
}

func (k *tasks) Stats(ctx context.Context, task, container string) (runtime.Stats, error) {
	return k.stats, k.check(task)
}

// site is a control plane and nodes.
type site struct {
	testing.TB
	store   store.Store
	keys    *identity.Keyring
	control *identity.Member
}

func newSite(t testing.TB) *site {
	t.Helper()
	authority, err := identity.NewAuthority("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	mem := memory.New(memory.Options{})
	t.Cleanup(func() { mem.Close() })
	s := &site{TB: t, store: mem, keys: identity.NewKeyring(authority)}
	s.control = s.member(identity.ID{Role: identity.Control, Name: "c1"})
	return s
}

func (s *site) member(id identity.ID) *identity.Member {
	s.Helper()
	m, err := s.keys.Member(id, nil, time.Hour)
	if err == nil {
		err = m.Renew(s.Context())
	}
	if err != nil {
		s.Fatal(err)
	}
	return m
}

// serve runs a node's server until the returned function is called.
func (s *site) serve(name string, k orchestrate.Access) (address string, stop func()) {
	s.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	m := s.member(identity.ID{Role: identity.Node, Name: name})
	go func() { done <- Serve(ctx, l, m, k) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				s.Errorf("Serve returned %v, want nil", err)
			}
		})
	}
	s.Cleanup(stop)
	return l.Addr().String(), stop
}

// at puts a node's address down.
func (s *site) at(name, address string) {
	s.Helper()
	data, err := json.Marshal(record.Node{Address: address})
	if err == nil {
		_, err = s.store.Commit(s.Context(), store.Txn{Writes: []store.Write{store.Put(record.Key(record.Nodes, name), data)}})
	}
	if err != nil {
		s.Fatal(err)
	}
}

// reach returns the way to a node as a member has it, whose connections end with
// the test.
func (s *site) reach(m *identity.Member, name string) orchestrate.Access {
	s.Helper()
	a, err := Access(s.store, m)(name)
	if err != nil {
		s.Fatal(err)
	}
	d := a.(*client).dialer
	s.Cleanup(func() {
		for _, c := range d.nodes {
			c.CloseIdleConnections()
		}
	})
	return a
}

func text(i int) runtime.LogLine {
	// Two lines of each time: clocks are not as fine as programs are quick.
	return runtime.LogLine{Time: time.Unix(1e9, int64(i/2)), Stream: "stdout", Text: fmt.Appendf(nil, "line %d", i)}
}

func TestCalls(t *testing.T) {
	s := newSite(t)
	k := &tasks{stats: runtime.Stats{CPU: time.Second, Memory: 7}}
	k.logs = func(_ context.Context, opts runtime.LogOptions, each func(runtime.LogLine) error) error {
		for i := range 1000 {
			if err := each(text(i)); err != nil {
				return err
			}
		}
		return nil
	}
	k.exec = func(_ context.Context, e runtime.Exec) (int, error) {
		in, err := io.ReadAll(e.Stdin)
		fmt.Fprintf(e.Stdout, "%s %s", strings.Join(e.Args, "+"), bytes.ToUpper(in))
		io.WriteString(e.Stderr, strings.Repeat("x", 300<<10))
		return 7, err
	}
	address, _ := s.serve("n1", k)
	s.at("n1", address)
	n1 := s.reach(s.control, "n1")

	n := 0
	err := n1.Logs(t.Context(), "web", "", runtime.LogOptions{}, func(l runtime.LogLine) error {
		if want := text(n); !l.Time.Equal(want.Time) || !bytes.Equal(l.Text, want.Text) || l.Stream != want.Stream {
			t.Fatalf("line %d: got %+v, want %+v", n, l, want)
		}
		n++
		return nil
	})
	if err != nil || n != 1000 {
		t.Errorf("logs: %d lines, error %v; want 1000 and none", n, err)
	}
	enough := errors.New("enough")
	if err := n1.Logs(t.Context(), "web", "", runtime.LogOptions{Follow: true}, func(runtime.LogLine) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("logs whose reader has had enough: got %v, want its error", err)
	}
	var out, stderr bytes.Buffer
	code, err := n1.Exec(t.Context(), "web", "", runtime.Exec{
		Args: []string{"a", "b c"}, Stdin: strings.NewReader("said"), Stdout: &out, Stderr: &stderr,
	})
	if err != nil || code != 7 || out.String() != "a+b c SAID" || stderr.Len() != 300<<10 {
		t.Errorf("exec: code %d, %q, %d bytes of errors, %v; want 7, \"a+b c SAID\", %d and none", code, out.String(), stderr.Len(), err, 300<<10)
	}
	if stats, err := n1.Stats(t.Context(), "web", ""); err != nil || stats != k.stats {
		t.Errorf("stats: got %+v, %v; want %+v", stats, err, k.stats)
	}
	for task, want := range map[string]error{"gone": orchestrate.ErrNotFound, "stopped": orchestrate.ErrNotRunning} {
		var e *Error
		if _, err := n1.Stats(t.Context(), task, ""); !errors.Is(err, want) || !errors.As(err, &e) || e.Node != "n1" {
			t.Errorf("stats of %s: got %v, want an Error of n1 that is %v", task, err, want)
		}
		if _, err := n1.Exec(t.Context(), task, "", runtime.Exec{Args: []string{"x"}}); !errors.Is(err, want) {
			t.Errorf("exec in %s: got %v, want %v", task, err, want)
		}
		if err := n1.Logs(t.Context(), task, "", runtime.LogOptions{Follow: true}, nil); !errors.Is(err, want) {
			t.Errorf("logs of %s: got %v, want %v", task, err, want)
		}
	}
}

// Only a control plane is answered, and only by the node that it means.
func TestWhoMay(t *testing.T) {
	s := newSite(t)
	k := &tasks{}
	address, _ := s.serve("n1", k)
	s.at("n1", address)
	s.at("n2", address) // somebody else, or an old address
	s.at("nowhere", "")
	if _, err := s.reach(s.control, "n1").Stats(t.Context(), "web", ""); err != nil {
		t.Errorf("a control plane asks: %v", err)
	}
	node := s.member(identity.ID{Role: identity.Node, Name: "n3"})
	if _, err := s.reach(node, "n1").Stats(t.Context(), "web", ""); err == nil {
		t.Error("a node asks another: got an answer, want an error")
	}
	var denied *identity.DeniedError
	if _, err := s.reach(s.control, "n2").Stats(t.Context(), "web", ""); !errors.As(err, &denied) || denied.ID.Name != "n1" {
		t.Errorf("n2's address leads to n1: got %v, want a DeniedError that names n1", err)
	}
	for _, name := range []string{"nowhere", "unknown"} {
		if _, err := s.reach(s.control, name).Stats(t.Context(), "web", ""); !errors.Is(err, orchestrate.ErrNoAccess) {
			t.Errorf("a node without an address: got %v, want ErrNoAccess", err)
		}
	}
	other := newSite(t)
	if _, err := s.reach(other.control, "n1").Stats(t.Context(), "web", ""); err == nil {
		t.Error("a control plane of another fleet asks: got an answer, want an error")
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s?task=web HTTP/1.1\r\nHost: x\r\n\r\n", pathStats)
	if answer, _ := io.ReadAll(c); strings.Contains(string(answer), "200 OK") {
		t.Errorf("without TLS: answered %q", answer)
	}
}

// What ends at one end ends at the other.
func TestCancel(t *testing.T) {
	s := newSite(t)
	k := &tasks{}
	ended := make(chan error, 2)
	wait := func(ctx context.Context) error {
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	k.logs = func(ctx context.Context, _ runtime.LogOptions, each func(runtime.LogLine) error) error {
		if err := each(text(0)); err != nil {
			return err
		}
		return wait(ctx)
	}
	k.exec = func(ctx context.Context, e runtime.Exec) (int, error) {
		io.WriteString(e.Stdout, "started")
		return 0, wait(ctx)
	}
	address, _ := s.serve("n1", k)
	s.at("n1", address)
	n1 := s.reach(s.control, "n1")
	mine := errors.New("mine")
	ctx, cancel := context.WithCancelCause(t.Context())
	err := n1.Logs(ctx, "web", "", runtime.LogOptions{Follow: true}, func(runtime.LogLine) error {
		cancel(mine)
		return nil
	})
	if !errors.Is(err, mine) {
		t.Errorf("logs whose context was cancelled: got %v, want its cause", err)
	}
	<-ended
	ctx, cancel = context.WithCancelCause(t.Context())
	_, err = n1.Exec(ctx, "web", "", runtime.Exec{Args: []string{"x"}, Stdout: writer(func(p []byte) { cancel(mine) })})
	if !errors.Is(err, mine) {
		t.Errorf("exec whose context was cancelled: got %v, want its cause", err)
	}
	<-ended
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

// A reader that takes nothing stops the node from producing.
func TestBackpressure(t *testing.T) {
	s := newSite(t)
	k := &tasks{}
	const lines, size = 4000, 8 << 10
	var made atomic.Int64
	k.logs = func(_ context.Context, _ runtime.LogOptions, each func(runtime.LogLine) error) error {
		for i := range lines {
			l := text(i)
			l.Text = bytes.Repeat([]byte("x"), size)
			if err := each(l); err != nil {
				return err
			}
			made.Add(1)
		}
		return nil
	}
	address, _ := s.serve("n1", k)
	s.at("n1", address)
	n := 0
	err := s.reach(s.control, "n1").Logs(t.Context(), "web", "", runtime.LogOptions{}, func(runtime.LogLine) error {
		if n++; n == 1 {
			// Time enough for a node that nobody holds back to send it all.
			<-time.After(time.Second)
			// HTTP/2's windows and the sockets' buffers hold some MiB.
			if ahead := made.Load() * size; ahead > 24<<20 {
				t.Errorf("the node went %d MiB ahead of a reader that waits, want some MiB", ahead>>20)
			}
		}
		return nil
	})
	if err != nil || n != lines {
		t.Errorf("logs: %d lines, %v; want %d", n, err, lines)
	}
}

// Followed logs go on after the node's server was gone, where they were.
func TestLogsGoOn(t *testing.T) {
	s := newSite(t)
	const lines = 50
	cut := make(chan struct{})
	log := func(limit int) *tasks {
		k := &tasks{}
		k.logs = func(ctx context.Context, opts runtime.LogOptions, each func(runtime.LogLine) error) error {
			for i := range lines {
				l := text(i)
				if l.Time.Before(opts.Since) {
					continue
				}
				if i == limit {
					close(cut)
					<-ctx.Done()
					return ctx.Err()
				}
				if err := each(l); err != nil {
					return err
				}
			}
			return nil
		}
		return k
	}
	address, stop := s.serve("n1", log(25)) // between two lines of one time
	s.at("n1", address)
	n1 := s.reach(s.control, "n1")
	go func() {
		<-cut
		stop()
		address, _ := s.serve("n1", log(-1))
		s.at("n1", address)
	}()
	n := 0
	err := n1.Logs(t.Context(), "web", "", runtime.LogOptions{Follow: true}, func(l runtime.LogLine) error {
		if string(l.Text) != string(text(n).Text) {
			t.Errorf("line %d is %q", n, l.Text)
		}
		n++
		return nil
	})
	if err != nil || n != lines {
		t.Errorf("logs over a broken connection: %d lines, %v; want %d", n, err, lines)
	}
	// Without Follow it is an error.
	cut = make(chan struct{})
	address, stop = s.serve("n2", log(10))
	s.at("n2", address)
	go func() {
		<-cut
		stop()
	}()
	if err := s.reach(s.control, "n2").Logs(t.Context(), "web", "", runtime.LogOptions{}, func(runtime.LogLine) error { return nil }); err == nil {
		t.Error("logs that were cut off, without Follow: got nil, want an error")
	}
}

func FuzzReadFrame(f *testing.F) {
	var b bytes.Buffer
	if err := writeFrame(&b, frameLine, []byte(`{"t":"2001-09-09T01:46:40Z"}`)); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("l\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := answer(t.Context(), "n", bytes.NewReader(data), func(kind byte, data []byte) error {
			if len(data) > maxFrame {
				t.Errorf("a frame of %d bytes was taken", len(data))
			}
			return nil
		})
		if err == nil && !bytes.Contains(data, []byte{frameEnd}) {
			t.Errorf("%q ended without an end", data)
		}
	})
}
