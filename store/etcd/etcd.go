package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd/internal/zapslog"
)

// Store is a [store.Store], [store.Getter] and [store.Compacter] in etcd.
type Store struct {
	opts   Options
	client *clientv3.Client
	near   near
	beside *clientv3.Client // has near's connection; nil without
	kv     etcdserverpb.KVClient
	leases etcdserverpb.LeaseClient

	closed context.Context // ends with Close
	end    context.CancelFunc

	mu      sync.Mutex // guards what follows
	ended   bool
	calls   sync.WaitGroup // calls and watches that use the client
	watches int            // that have a stream or want one
	asking  bool           // a goroutine asks for their progress
}

var (
	_ store.Store     = (*Store)(nil)
	_ store.Getter    = (*Store)(nil)
	_ store.Compacter = (*Store)(nil)
)

// The client's view of the network. A server that is cut off says nothing, so
// silence must tell. Bytes that are not acknowledged for deadAfter end a
// connection; and on one on which nothing comes the kernel asks the other one
// each probeEvery, which costs a packet and wakes nobody. So a dead connection is
// noticed deadAfter after the last sign of life, or, if something was sent just
// before the first question, probeEvery later. A server whose kernel answers and
// that does not is asked each pingEvery, which is the least that gRPC allows.
const (
	probeEvery = time.Second
	pingEvery  = 10 * time.Second
	deadAfter  = 2 * time.Second
)

// dialer dials servers.
var dialer = net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
	Enable: true, Idle: probeEvery, Interval: probeEvery, Count: int(deadAfter / probeEvery),
}}

// dial connects to a server, as gRPC names it.
func dial(ctx context.Context, address string) (net.Conn, error) {
	if path, unix := strings.CutPrefix(address, "unix:"); unix {
		return dialer.DialContext(ctx, "unix", strings.TrimPrefix(path, "//"))
	}
	return dialer.DialContext(ctx, "tcp", address)
}

// reconnect is how a connection is tried again. By gRPC's own ways a client that
// was without servers for some minutes would not look for them again for up to two
// more, and a node that is back would count as lost for as long.
var reconnect = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
	MinConnectTimeout: 3 * time.Second,
}

// callOptions are what the client gives to its own calls.
var callOptions = []grpc.CallOption{
	grpc.WaitForReady(true),
	grpc.MaxCallSendMsgSize(2 << 20),
	grpc.MaxCallRecvMsgSize(1<<31 - 1),
}

// Open returns a store over the etcd at the endpoints. It does not wait for
// them, so that a program can start while they are down; [Store.Check] does.
// Only with a password it must talk to one at once. The error is an
// [*OptionError] or, of the password, an [*Error].
func Open(opts Options) (*Store, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{opts: opts}
	config := clientv3.Config{
		Endpoints:            opts.Endpoints,
		TLS:                  opts.TLS,
		Username:             opts.Username,
		Password:             opts.Password,
		DialTimeout:          opts.Timeout,
		DialKeepAliveTime:    pingEvery,
		DialKeepAliveTimeout: deadAfter,
		Logger:               zapslog.New(opts.Logger),
		DialOptions:          []grpc.DialOption{grpc.WithConnectParams(reconnect), grpc.WithContextDialer(dial)},
	}
	if opts.Near != "" {
		beside := config
		beside.Endpoints = []string{opts.Near}
		if s.beside, err = clientv3.New(beside); err != nil {
			return nil, &Error{Op: "open etcd", Kind: kindOf(err), Err: err}
		}
		s.near.conn = s.beside.ActiveConnection()
		s.near.conn.Connect()
		config.DialOptions = append(config.DialOptions, grpc.WithChainUnaryInterceptor(s.near.unary), grpc.WithChainStreamInterceptor(s.near.stream))
	}
	if s.client, err = clientv3.New(config); err != nil {
		if s.beside != nil {
			_ = s.beside.Close()
		}
		return nil, &Error{Op: "open etcd", Kind: kindOf(err), Err: err}
	}
	s.kv = etcdserverpb.NewKVClient(s.client.ActiveConnection())
	s.leases = etcdserverpb.NewLeaseClient(s.client.ActiveConnection())
	s.closed, s.end = context.WithCancel(context.Background())
	return s, nil
}

// Client is the client underneath, for what this package does not offer, such
// as users and roles. The store closes it.
func (s *Store) Client() *clientv3.Client { return s.client }

// Prefix is what the store puts before each key; empty for nothing.
func (s *Store) Prefix() string { return s.opts.Prefix }

// Close ends all watches and calls and the connections. Leases live on until
// their time is over.
func (s *Store) Close() (err error) {
	s.mu.Lock()
	first := !s.ended
	s.ended = true
	s.end()
	s.mu.Unlock()
	s.calls.Wait()
	if !first {
		return nil
	}
	for _, client := range []*clientv3.Client{s.client, s.beside} {
		if client == nil {
			continue
		}
		if e := client.Close(); e != nil && !errors.Is(e, context.Canceled) {
			err = errors.Join(err, fmt.Errorf("close etcd client: %w", e))
		}
	}
	return err
}

// begin ties a call to the life of the store.
func (s *Store) begin(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, nil, store.ErrClosed
	}
	s.calls.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.closed, cancel)
	return ctx, func() {
		stop()
		cancel()
		s.calls.Done()
	}, nil
}

// The pauses between tries of a call.
const (
	firstPause = 20 * time.Millisecond
	maxPause   = 500 * time.Millisecond
)

// call makes a call to etcd. One that may be repeated is, on the next server,
// whenever a try took longer than patience or failed in a way that may pass;
// another only if it certainly did not happen. Patience of 0 is as long as the
// call may take.
func (s *Store) call(caller context.Context, op string, repeat bool, patience time.Duration, try func(context.Context) error) error {
	ctx, done, err := s.begin(caller)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	// A server that is cut off from the others says so at once instead of
	// making the caller wait.
	ctx = s.near.mark(clientv3.WithRequireLeader(ctx))
	pause := firstPause
	for {
		attempt, stop := ctx, context.CancelFunc(func() {})
		if patience > 0 {
			attempt, stop = context.WithTimeout(ctx, patience)
		}
		err := try(attempt)
		stop()
		if err == nil {
			return nil
		}
		if caller.Err() == nil && passing(err) {
			s.near.failed(ctx)
		}
		if ctx.Err() != nil || !(repeat && passing(err)) && !untouched(err) {
			return s.failed(caller, op, err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return s.failed(caller, op, err)
		}
		pause = min(2*pause, maxPause)
		patience = min(2*patience, s.opts.Timeout) // for those that are slow, and not gone
	}
}

// failed is the error of a call: the caller's own end first, then the store's,
// and only then what the client says, which was often caused by these.
func (s *Store) failed(caller context.Context, op string, err error) error {
	switch {
	case caller.Err() != nil:
		return caller.Err()
	case s.closed.Err() != nil:
		return store.ErrClosed
	}
	return s.error(op, err)
}

// error is an error of etcd.
func (s *Store) error(op string, err error) *Error {
	e := &Error{Op: op, Kind: kindOf(err), Err: err}
	if e.Kind == ErrDenied || e.Kind == ErrUnauthenticated {
		s.opts.Refused()
	}
	return e
}

// patience is how long a read may take before another server is asked.
const patience = 2 * time.Second
