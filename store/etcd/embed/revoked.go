package embed

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// etcd asks who a client is when it begins a watch, and not again: a user that was
// deleted would go on to be told of every change for as long as its connection
// lasts. So this server looks at the users of its streams whenever users have
// changed, and ends those of such that are no more.

// lookEvery is how often streams on which nothing is sent are looked at. Of one on
// which something is to be sent, that is done before.
const lookEvery = 500 * time.Millisecond

// streams are those of clients that are users by their certificates.
type streams struct {
	member  *Member
	started chan struct{} // closed when member.etcd is set

	mu   sync.Mutex // guards open
	open map[*stream]bool
}

// stream is one that ends with its user.
type stream struct {
	grpc.ServerStream
	streams *streams
	ctx     context.Context
	end     context.CancelFunc
	user    string
	seen    atomic.Uint64 // up to which change of users it is known that this one is there
	gone    atomic.Bool
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) SendMsg(m any) error {
	if !s.check() {
		return rpctypes.ErrGRPCPermissionDenied
	}
	return s.ServerStream.SendMsg(m)
}

// check ends the stream if its user is no more, and reports whether it is there.
func (s *stream) check() bool {
	server := s.streams.member.etcd.Server
	select {
	case <-server.StoppingNotify(): // and with it what its users are kept in
		return !s.gone.Load()
	default:
	}
	users := server.AuthStore()
	now := users.Revision()
	if s.seen.Load() == now || !users.IsAuthEnabled() {
		return !s.gone.Load()
	}
	if _, err := users.UserGet(&etcdserverpb.AuthUserGetRequest{Name: s.user}); err != nil {
		s.gone.Store(true)
		s.end()
		return false
	}
	s.seen.Store(now)
	return !s.gone.Load()
}

// serve is a server's interceptor.
func (s *streams) serve(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	user := userOf(ss.Context())
	if user == "" {
		return handle(srv, ss)
	}
	select {
	case <-s.started:
	case <-ss.Context().Done():
		return ss.Context().Err()
	}
	one := &stream{ServerStream: ss, streams: s, user: user}
	one.ctx, one.end = context.WithCancel(ss.Context())
	defer one.end()
	s.mu.Lock()
	s.open[one] = true
	s.mu.Unlock()
	err := handle(srv, one)
	s.mu.Lock()
	delete(s.open, one)
	s.mu.Unlock()
	if one.gone.Load() {
		return rpctypes.ErrGRPCPermissionDenied
	}
	return err
}

// userOf is the user that a client's certificate makes it; see etcd's
// AuthInfoFromTLS.
func userOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return ""
	}
	return info.State.VerifiedChains[0][0].Subject.CommonName
}

// look looks at all streams, until the member ends.
func (s *streams) look() {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.member.done:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		for one := range s.open {
			one.check()
		}
		s.mu.Unlock()
	}
}
