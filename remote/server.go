package remote

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// beat is how often a node says that a connection stands on which it has nothing
// else to say, and patience how long a client waits for that.
const (
	beat     = 10 * time.Second
	patience = 30 * time.Second
)

// Option changes a server.
type Option func(*server)

// WithLogger sets where the server logs to; by default nowhere.
func WithLogger(l *slog.Logger) Option { return func(s *server) { s.log = l } }

type server struct {
	access orchestrate.Access
	log    *slog.Logger
}

// Serve answers control planes on a listener, which must not be TLS already,
// until ctx ends, and returns nil then. It closes the listener. Calls that are
// under way are cut off; a node.Agent is an [orchestrate.Access].
func Serve(ctx context.Context, l net.Listener, m *identity.Member, access orchestrate.Access, opts ...Option) error {
	s := &server{access: access, log: slog.New(slog.DiscardHandler)}
	for _, o := range opts {
		o(s)
	}
	config := m.Server(identity.Is(identity.Control))
	config.NextProtos = []string{"h2"}
	calls, cancel := context.WithCancel(ctx)
	defer cancel()
	web := &http.Server{
		Handler: s.handler(), BaseContext: func(net.Listener) context.Context { return calls },
		TLSConfig: config, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		HTTP2:    &http.HTTP2Config{SendPingTimeout: beat, PingTimeout: beat},
	}
	ended := make(chan error, 1)
	go func() { ended <- web.ServeTLS(l, "", "") }()
	select {
	case <-ctx.Done():
		cancel()
		closing, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer done()
		if web.Shutdown(closing) != nil {
			_ = web.Close() // those that would not end
		}
		<-ended
		return nil
	case err := <-ended:
		_ = web.Close()
		return err
	}
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathLogs, s.logs)
	mux.HandleFunc("POST "+pathExec, s.exec)
	mux.HandleFunc("GET "+pathStats, s.stats)
	return mux
}

// stream writes frames, each at once.
type stream struct {
	mu sync.Mutex // one frame at a time
	w  io.Writer
	rc *http.ResponseController
}

func newStream(w http.ResponseWriter) *stream {
	w.Header().Set("Content-Type", "application/octet-stream")
	return &stream{w: w, rc: http.NewResponseController(w)}
}

func (s *stream) frame(kind byte, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := writeFrame(s.w, kind, data); err != nil {
		return err
	}
	return s.rc.Flush()
}

func (s *stream) json(kind byte, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.frame(kind, data)
}

// end writes the last frame. What the client does not hear it does not need; and
// of a call that is cut off there is no result, so it gets none.
func (s *stream) end(ctx context.Context, res result, err error) {
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		_ = s.json(frameError, failureOf(err))
		return
	}
	_ = s.json(frameEnd, res)
}

// beats says now and then that the connection stands, until the call is over.
func (s *stream) beats(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(beat)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				_ = s.frame(frameBeat, nil) // the call itself sees what is wrong
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	opts := runtime.LogOptions{Follow: q.Get("follow") == "true"}
	var err error
	if since := q.Get("since"); since != "" {
		opts.Since, err = time.Parse(time.RFC3339Nano, since)
	}
	if tail := q.Get("tail"); tail != "" && err == nil {
		opts.Tail, err = strconv.Atoi(tail)
	}
	out := newStream(w)
	if err != nil {
		out.end(r.Context(), result{}, err)
		return
	}
	if err := out.frame(frameBeat, nil); err != nil { // the call has arrived
		return
	}
	stop := out.beats(r.Context())
	defer stop()
	err = s.access.Logs(r.Context(), q.Get("task"), q.Get("container"), opts, func(l runtime.LogLine) error {
		return out.json(frameLine, line{l.Time, l.Stream, l.Text, l.Partial})
	})
	out.end(r.Context(), result{}, err)
}

func (s *server) stats(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	stats, err := s.access.Stats(r.Context(), q.Get("task"), q.Get("container"))
	newStream(w).end(r.Context(), result{Stats: &stats}, err)
}

// output is a process's standard output or error.
type output struct {
	*stream
	kind byte
}

func (o output) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		part := p[:min(len(p), maxFrame)]
		if err := o.frame(o.kind, part); err != nil {
			return n, err
		}
		n, p = n+len(part), p[len(part):]
	}
	return n, nil
}

func (s *server) exec(w http.ResponseWriter, r *http.Request) {
	out := newStream(w)
	body := bufio.NewReader(r.Body)
	head, err := readLine(body)
	var c command
	if err == nil {
		err = json.Unmarshal(head, &c)
	}
	if err != nil {
		out.end(r.Context(), result{}, err)
		return
	}
	// The client sends its input once it has seen an answer begin.
	if err := out.frame(frameBeat, nil); err != nil {
		return
	}
	stop := out.beats(r.Context())
	defer stop()
	e := runtime.Exec{Args: c.Args, Env: c.Env, Dir: c.Dir, User: c.User, Terminal: c.Terminal}
	if c.Stdin {
		e.Stdin = body
	}
	if c.Stdout {
		e.Stdout = output{out, frameStdout}
	}
	if c.Stderr {
		e.Stderr = output{out, frameStderr}
	}
	q := r.URL.Query()
	peer, _ := identity.Peer(*tlsOf(r))
	s.log.Info("exec", "by", peer.String(), "task", q.Get("task"), "container", q.Get("container"))
	code, err := s.access.Exec(r.Context(), q.Get("task"), q.Get("container"), e)
	out.end(r.Context(), result{Code: code}, err)
}

func tlsOf(r *http.Request) *tls.ConnectionState {
	if r.TLS == nil {
		return new(tls.ConnectionState)
	}
	return r.TLS
}

// readLine reads a line of at most maxFrame bytes.
func readLine(r *bufio.Reader) ([]byte, error) {
	var head []byte
	for {
		part, err := r.ReadSlice('\n')
		head = append(head, part...)
		switch {
		case err == nil:
			return head, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(head) > maxFrame:
			return nil, errors.New("the command is too long")
		}
	}
}
