package embed

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Leads reports whether this member leads its cluster, as far as it knows.
func (m *Member) Leads() bool {
	return m.etcd.Server.Leader() == m.etcd.Server.MemberID()
}

const (
	// probeTimeout is how long a member may take to say that it could lead.
	probeTimeout = 500 * time.Millisecond
	// yieldTimeout bounds the wait for the other one to lead.
	yieldTimeout = 3 * time.Second
	// yieldBehind is how many entries of the log the next leader may lack.
	yieldBehind = 1000
)

// ErrNobody says that no other member can lead at the moment.
var ErrNobody = errors.New("no other member answers that could lead")

// Yield hands the lead to another member that votes and answers, and waits until
// that one leads; writes wait for as long, which is mostly some milliseconds. Where
// this member does not lead, or is alone, it does nothing. The error is [ErrNobody]
// when there is none to hand it to; then nothing has happened.
//
// It is for a program whose own leader should not be where etcd's is: when a
// member dies that leads, the others elect one, and that one begins the time of
// every lease anew. What waits for a lease to end waits for all of that.
func (m *Member) Yield() error {
	if err := m.yield(); err != nil {
		return fmt.Errorf("etcd member %s yields the lead: %w", m.opts.Name, err)
	}
	return nil
}

// yield asks before it hands over: while a leader hands over to one that is cut
// off, which etcd itself does not notice for long, it loses what is proposed to it,
// for a second each time, and whoever proposed that waits for seven.
func (m *Member) yield() error {
	server := m.etcd.Server
	ctx, cancel := context.WithTimeout(context.Background(), yieldTimeout)
	defer cancel()
	members := server.Cluster().Members()
	if !m.Leads() || len(members) < 2 {
		return nil
	}
	for _, other := range members {
		if other.ID == server.MemberID() || other.IsLearner || len(other.ClientURLs) == 0 || !m.follows(ctx, other.ClientURLs[0]) {
			continue
		}
		_, err := m.admin.MoveLeader(m.root(ctx), uint64(other.ID))
		return err
	}
	return ErrNobody
}

// follows reports whether the member at a client URL answers that it follows this
// one closely.
func (m *Member) follows(ctx context.Context, url string) bool {
	client, err := m.client(url)
	if err != nil {
		return false
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	status, err := client.Status(ctx, url)
	return err == nil && !status.IsLearner && status.Leader == uint64(m.etcd.Server.MemberID()) &&
		status.RaftAppliedIndex+yieldBehind >= m.etcd.Server.AppliedIndex()
}

// client is one of another member, by this one's certificate.
func (m *Member) client(url string) (*clientv3.Client, error) {
	config := clientv3.Config{Endpoints: []string{url}}
	if m.opts.ClientTLS != (TLS{}) {
		certs, err := m.opts.ClientTLS.info().ClientConfig()
		if err != nil {
			return nil, err
		}
		config.TLS = certs
	}
	return clientv3.New(config)
}
