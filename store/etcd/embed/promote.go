package embed

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// promoteTimeout bounds one try to get a vote.
const promoteTimeout = 2 * time.Second

// promote asks for this member's vote. Only the leader knows whether a learner has
// caught up. A server that does not lead asks the leader's peer port on behalf of
// its caller, but not in its caller's name: with access control on, the leader
// refuses that. So the leader is asked as any client asks it, by the member's
// certificate, and the other way where that is not possible.
func (m *Member) promote(ctx context.Context) error {
	asked := m.askLeader(ctx)
	if asked == nil || errors.Is(asked, rpctypes.ErrMemberLearnerNotReady) || errors.Is(asked, rpctypes.ErrMemberNotLearner) {
		return asked
	}
	ctx, cancel := context.WithTimeout(ctx, promoteTimeout)
	defer cancel()
	_, err := m.admin.MemberPromote(m.root(ctx), uint64(m.etcd.Server.MemberID()))
	if err != nil && passing(asked) {
		return rpctypes.ErrMemberLearnerNotReady
	}
	return err
}

// askLeader asks the leader at its client URL.
func (m *Member) askLeader(ctx context.Context) error {
	leader := m.etcd.Server.Cluster().Member(m.etcd.Server.Leader())
	if leader == nil || len(leader.ClientURLs) == 0 {
		return rpctypes.ErrNoLeader
	}
	client, err := m.client(leader.ClientURLs[0])
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, promoteTimeout)
	defer cancel()
	_, err = client.MemberPromote(ctx, uint64(m.etcd.Server.MemberID()))
	return err
}

// passing reports whether the leader may answer otherwise a little later: it could
// not be asked, or it leads no more and has asked another one itself.
func passing(err error) bool {
	var known rpctypes.EtcdError
	code := status.Code(err)
	if errors.As(err, &known) {
		code = known.Code()
	}
	return code == codes.Unavailable || errors.Is(err, context.DeadlineExceeded) || code == codes.DeadlineExceeded
}
