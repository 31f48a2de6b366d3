package embed

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// What is wrong with a member's name.
var (
	// ErrNotFound says that the cluster has no member of that name.
	ErrNotFound = errors.New("no such member")
	// ErrInUse says that the name, or the URL, is that of another member.
	ErrInUse = errors.New("in use by another member")
)

// Info is a member as its cluster knows it.
type Info struct {
	ID        string // in hexadecimal
	Name      string // empty until it was started for the first time
	PeerURL   string
	ClientURL string // empty until it was started
	Learner   bool   // has no vote yet
	Leader    bool
}

// Invitation is what a new member needs to join; see Options.Join.
type Invitation struct {
	Members map[string]string // name and peer URL of each, the new one too
}

// Members lists the cluster's members, as more than half of them agree.
func (m *Member) Members(ctx context.Context) ([]Info, error) {
	list, err := m.admin.MemberList(m.root(ctx))
	if err != nil {
		return nil, fmt.Errorf("list etcd members: %w", err)
	}
	leader := uint64(m.etcd.Server.Leader())
	var infos []Info
	for _, member := range list.Members {
		info := Info{
			ID: fmt.Sprintf("%x", member.ID), Name: member.Name,
			PeerURL: member.PeerURLs[0], Learner: member.IsLearner, Leader: member.ID == leader,
		}
		if len(member.ClientURLs) > 0 {
			info.ClientURL = member.ClientURLs[0]
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// Invite adds a member, which has no vote until it has caught up. While the
// cluster is too weak to grow, Invite waits until ctx ends. Inviting the same
// again returns the same invitation. A name or a URL that another member has is
// [ErrInUse], and nothing is changed.
func (m *Member) Invite(ctx context.Context, name, peerURL string) (*Invitation, error) {
	// Before anything is added: a learner that nobody starts keeps all others out.
	now, err := m.admin.MemberList(m.root(ctx))
	if err != nil {
		return nil, fmt.Errorf("invite etcd member %s: %w", name, err)
	}
	if err := taken(now.Members, name, peerURL); err != nil {
		return nil, fmt.Errorf("invite etcd member %s: %w", name, err)
	}
	var list []*etcdserverpb.Member
	err = m.retry(ctx, func() error {
		added, err := m.admin.MemberAddAsLearner(m.root(ctx), []string{peerURL})
		if err == nil {
			list = added.Members
			return nil
		}
		if !errors.Is(err, rpctypes.ErrPeerURLExist) && !errors.Is(err, rpctypes.ErrMemberExist) {
			return err
		}
		all, err := m.admin.MemberList(m.root(ctx))
		if err == nil {
			list = all.Members
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("invite etcd member %s: %w", name, err)
	}
	if err := taken(list, name, peerURL); err != nil { // by another call meanwhile
		return nil, fmt.Errorf("invite etcd member %s: %w", name, err)
	}
	invitation := &Invitation{Members: map[string]string{}}
	for _, member := range list {
		switch {
		case member.PeerURLs[0] == peerURL:
			invitation.Members[name] = peerURL
		case member.Name != "":
			invitation.Members[member.Name] = member.PeerURLs[0]
		default:
			invitation.Members[fmt.Sprintf("%x", member.ID)] = member.PeerURLs[0]
		}
	}
	return invitation, nil
}

// taken is ErrInUse if another member has the name or the URL. The name of one
// that was never started is not known.
func taken(list []*etcdserverpb.Member, name, peerURL string) error {
	for _, member := range list {
		switch there := member.PeerURLs[0] == peerURL; {
		case there && member.Name != "" && member.Name != name:
			return fmt.Errorf("%s is that of %s: %w", peerURL, member.Name, ErrInUse)
		case !there && member.Name == name:
			return fmt.Errorf("there is one at %s: %w", member.PeerURLs[0], ErrInUse)
		}
	}
	return nil
}

// Remove removes a member for ever: it stops by itself if it runs, and its
// folder is worth nothing any more. The error may be [ErrNotFound].
func (m *Member) Remove(ctx context.Context, name string) error {
	list, err := m.admin.MemberList(m.root(ctx))
	if err != nil {
		return fmt.Errorf("remove etcd member %s: %w", name, err)
	}
	for _, member := range list.Members {
		if member.Name != name {
			continue
		}
		err := m.retry(ctx, func() error {
			_, err := m.admin.MemberRemove(m.root(ctx), member.ID)
			if errors.Is(err, rpctypes.ErrMemberNotFound) {
				return nil // an earlier try did it
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("remove etcd member %s: %w", name, err)
		}
		return nil
	}
	return fmt.Errorf("remove etcd member %s: %w", name, ErrNotFound)
}

// Replace removes the member old, if it is there, and invites another. Calling
// it again after it was interrupted goes on with it. What Invite would refuse is
// refused before anything is removed.
func (m *Member) Replace(ctx context.Context, old, name, peerURL string) (*Invitation, error) {
	now, err := m.admin.MemberList(m.root(ctx))
	if err == nil {
		rest := slices.DeleteFunc(now.Members, func(member *etcdserverpb.Member) bool { return member.Name == old })
		err = taken(rest, name, peerURL)
	}
	if err != nil {
		return nil, fmt.Errorf("replace etcd member %s by %s: %w", old, name, err)
	}
	if err := m.Remove(ctx, old); err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	return m.Invite(ctx, name, peerURL)
}

// retry tries until the cluster is ready for a change of its members. etcd
// refuses one that could leave it without a majority, and for five seconds after
// a member was lost or came.
func (m *Member) retry(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil || !again(err) {
			return err
		}
		if m.pause(ctx) != nil {
			return err
		}
	}
}

// again reports whether a change of the members may succeed a little later.
func again(err error) bool {
	for _, passing := range []error{
		rpctypes.ErrUnhealthy, rpctypes.ErrMemberNotEnoughStarted, rpctypes.ErrNoLeader, rpctypes.ErrLeaderChanged,
		rpctypes.ErrTimeout, rpctypes.ErrTimeoutDueToLeaderFail, rpctypes.ErrTimeoutDueToConnectionLost,
	} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

// root lets a call pass etcd's access control: who holds the member holds all
// of its data anyway.
func (m *Member) root(ctx context.Context) context.Context {
	if store := m.etcd.Server.AuthStore(); store.IsAuthEnabled() {
		return store.WithRoot(ctx)
	}
	return ctx
}

// Reclaim gives the space of old revisions back and ends the state in which
// etcd takes no writes (etcd.ErrNoSpace) as far as this member asked for it: it
// forgets all history up to now, so that watches that lag list again, rewrites
// the database, for which time this member does not serve, and disarms its
// alarm. Call it on each member in turn.
func (m *Member) Reclaim(ctx context.Context) error {
	ctx = m.root(ctx)
	now, err := m.admin.Get(ctx, "/", clientv3.WithKeysOnly(), clientv3.WithLimit(1))
	if err != nil {
		return fmt.Errorf("reclaim space of etcd member %s: %w", m.opts.Name, err)
	}
	if _, err := m.admin.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("reclaim space of etcd member %s: compact: %w", m.opts.Name, err)
	}
	if err := m.etcd.Server.Backend().Defrag(); err != nil {
		return fmt.Errorf("reclaim space of etcd member %s: defragment: %w", m.opts.Name, err)
	}
	alarm := &clientv3.AlarmMember{MemberID: uint64(m.etcd.Server.MemberID()), Alarm: etcdserverpb.AlarmType_NOSPACE}
	if _, err := m.admin.AlarmDisarm(ctx, alarm); err != nil {
		return fmt.Errorf("reclaim space of etcd member %s: disarm its alarm: %w", m.opts.Name, err)
	}
	return nil
}
