package etcd

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// near is the server of Options.Near. The client asks all servers in turn, so with
// three of them a third of all calls, and each watch one time in three, go to the
// one that a fault parts from this machine, until that is noticed. The first try
// of a call goes here instead, and all further tries to any server.
type near struct {
	conn  *grpc.ClientConn // of a client of its own; nil: there is no such server
	avoid atomic.Int64     // until when it is not asked first, in nanoseconds since 1970
}

// nearRest is for how long the near server is not asked first after it has let a
// call fail: it may serve clients and have no way to the other servers.
const nearRest = 5 * time.Second

// nearKey is the key of a context's mark, an *atomic.Bool: whether the near server
// was asked.
type nearKey struct{}

// mark makes a context for a call that may go to the near server, once.
func (n *near) mark(ctx context.Context) context.Context {
	if n.conn == nil {
		return ctx
	}
	return context.WithValue(ctx, nearKey{}, new(atomic.Bool))
}

// failed is told of a call that failed in a way that may be its server's.
func (n *near) failed(ctx context.Context) {
	if asked, ok := ctx.Value(nearKey{}).(*atomic.Bool); ok && asked.Load() {
		n.avoid.Store(time.Now().Add(nearRest).UnixNano())
	}
}

// choose returns the connection for a try of a call.
func (n *near) choose(ctx context.Context, all *grpc.ClientConn) *grpc.ClientConn {
	asked, ok := ctx.Value(nearKey{}).(*atomic.Bool)
	if !ok || asked.Load() || time.Now().UnixNano() < n.avoid.Load() {
		return all
	}
	switch n.conn.GetState() {
	case connectivity.Ready:
		asked.Store(true)
		return n.conn
	case connectivity.Idle: // for want of calls
		n.conn.Connect()
	}
	return all
}

func (n *near) unary(ctx context.Context, method string, req, reply any, all *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return next(ctx, method, req, reply, n.choose(ctx, all), opts...)
}

func (n *near) stream(ctx context.Context, desc *grpc.StreamDesc, all *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return next(ctx, desc, n.choose(ctx, all), method, opts...)
}
