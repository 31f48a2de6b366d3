package embed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	server "go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"google.golang.org/grpc"

	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/internal/zapslog"
)

// Member is one etcd server in this process. Make it with [Start].
type Member struct {
	opts   Options
	config *server.Config
	etcd   *server.Etcd
	admin  *clientv3.Client // goes to the server without a connection
	users  *streams

	done   chan struct{} // closed by end
	ending sync.Once
	err    error // why it ended by itself; set before done is closed

	closing sync.Once
	watch   sync.WaitGroup // of the goroutine that waits for the server's end
}

// Start starts a member and waits until it serves: of a new cluster, until more
// than half of its members were started; of one that joins, until it votes. If
// ctx ends before that, the member is closed again and the error is the
// context's. Other errors are an [*OptionError], or etcd's.
func Start(ctx context.Context, opts Options) (*Member, error) {
	opts = opts.withDefaults()
	config, err := opts.config()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, &OptionError{"Dir", err.Error()}
	}
	m := &Member{opts: opts, config: config, done: make(chan struct{})}
	config.ZapLoggerBuilder = server.NewZapLoggerBuilder(zapslog.New(opts.Logger.With("member", opts.Name), func(message string) {
		m.end(errors.New(message))
	}))
	m.users = &streams{member: m, started: make(chan struct{}), open: map[*stream]bool{}}
	config.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainStreamInterceptor(m.users.serve)}
	if err := m.start(); err != nil {
		return nil, fmt.Errorf("start etcd member %s: %w", opts.Name, err)
	}
	if err := m.ready(ctx); err != nil {
		_ = m.Close()
		return nil, fmt.Errorf("start etcd member %s: %w", opts.Name, err)
	}
	return m, nil
}

// start starts the server. What etcd finds fatal ends the goroutine that found
// it, which must not be the caller's.
func (m *Member) start() error {
	result := make(chan error, 1)
	go func() {
		defer close(result)
		var err error
		m.etcd, err = server.StartEtcd(m.config)
		result <- err
	}()
	err, returned := <-result
	if !returned {
		<-m.done
		return m.err
	}
	if err != nil {
		return err
	}
	close(m.users.started)
	m.watch.Go(m.users.look)
	m.admin = v3client.New(m.etcd.Server)
	m.watch.Go(func() {
		select {
		case err, open := <-m.etcd.Err():
			if open {
				m.end(err)
			}
		case <-m.etcd.Server.StopNotify():
			m.end(errors.New("the server stopped: was it removed from the cluster?"))
		case <-m.done:
		}
	})
	return nil
}

// ready waits until the member serves and votes.
func (m *Member) ready(ctx context.Context) error {
	select {
	case <-m.etcd.Server.ReadyNotify():
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return ctx.Err()
	}
	for m.etcd.Server.IsLearner() {
		err := m.promote(ctx)
		switch {
		case err == nil, errors.Is(err, rpctypes.ErrMemberNotLearner):
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.Is(err, rpctypes.ErrMemberLearnerNotReady) && !again(err):
			return fmt.Errorf("promote: %w", err)
		}
		if err := m.pause(ctx); err != nil {
			return err
		}
	}
	return nil
}

// retryPause is between tries of what the cluster is not ready for yet.
const retryPause = 100 * time.Millisecond

func (m *Member) pause(ctx context.Context) error {
	timer := time.NewTimer(retryPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end notes why the member does not serve any more.
func (m *Member) end(err error) {
	m.ending.Do(func() {
		m.err = err
		close(m.done)
	})
}

// errClosed is the end of a member that was closed.
var errClosed = errors.New("closed")

// Name is the member's among the others.
func (m *Member) Name() string { return m.opts.Name }

// Endpoint is the member's client URL.
func (m *Member) Endpoint() string { return m.config.AdvertiseClientUrls[0].String() }

// PeerURL is where the other members reach this one.
func (m *Member) PeerURL() string { return m.config.AdvertisePeerUrls[0].String() }

// Done is closed when the member does not serve any more: after Close, or
// because of an error that Err returns.
func (m *Member) Done() <-chan struct{} { return m.done }

// Err returns why the member stopped by itself; nil while it serves and after
// Close.
func (m *Member) Err() error {
	select {
	case <-m.done:
		if m.err != errClosed { //nolint:errorlint // it is this very value
			return m.err
		}
	default:
	}
	return nil
}

// Open opens a store at this member, with its certificate as the client's; give
// endpoints of the others too if the store should survive this member. What
// else opts say is kept.
func (m *Member) Open(opts etcd.Options) (*etcd.Store, error) {
	if len(opts.Endpoints) == 0 {
		opts.Endpoints = []string{m.Endpoint()}
	}
	if opts.TLS == nil && m.opts.ClientTLS != (TLS{}) {
		config, err := m.opts.ClientTLS.info().ClientConfig()
		if err != nil {
			return nil, &OptionError{"ClientTLS", err.Error()}
		}
		opts.TLS = config
	}
	if opts.Logger == nil {
		opts.Logger = m.opts.Logger
	}
	return etcd.Open(opts)
}

// closeTimeout bounds how long Close waits for a server that something fatal has
// happened to: what ended without a word may be waited for by the rest of it.
const closeTimeout = 10 * time.Second

// Close stops the member and waits for it. The others go on if they are more
// than half. It returns why the member had stopped by itself, if it had. Closing
// twice is no error.
func (m *Member) Close() error {
	m.closing.Do(func() {
		failed := m.Err() != nil
		m.end(errClosed)
		m.watch.Wait()
		_ = m.admin.Close()
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			select {
			case <-m.etcd.Server.ReadyNotify():
			default:
				// What serves clients waits for this, and Close for that.
				m.etcd.Server.HardStop()
			}
			m.etcd.Close()
		}()
		if !failed {
			<-closed
			return
		}
		timer := time.NewTimer(closeTimeout)
		defer timer.Stop()
		select {
		case <-closed:
		case <-timer.C:
		}
	})
	return m.Err()
}
