//go:build unix

package etcd_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/embed"
	"github.com/orchestrate-go/orchestrate/store/etcd/internal/etcdtest"
	"github.com/orchestrate-go/orchestrate/store/storetest"
)

func TestMain(m *testing.M) {
	if ran, err := etcdtest.Child(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	} else if ran {
		return
	}
	if endpoints := os.Getenv(leaderEnv); endpoints != "" {
		if err := lead(endpoints); err != nil {
			panic(err)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// alone are the options of a cluster of one on loopback, in dir. It elects, and
// lets leases end, faster than one would want it to over a network.
func alone(dir string) embed.Options {
	return embed.Options{
		Name: "a", Dir: dir, PeerURL: "http://127.0.0.1:0", ClientURL: "http://127.0.0.1:0",
		Heartbeat: 20 * time.Millisecond, Election: 200 * time.Millisecond, Logger: etcdtest.Logger(),
	}
}

// start starts a member that is closed with the test.
func start(t testing.TB, opts embed.Options) *embed.Member {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	m, err := embed.Start(ctx, opts)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return m
}

// open opens a store that is closed with the test.
func open(t testing.TB, m *embed.Member, opts etcd.Options) *etcd.Store {
	t.Helper()
	s, err := m.Open(opts)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// longest is the longest prefix that a store takes.
var longest = "/" + strings.Repeat("p", 127)

// TestConformance runs the suite against etcd's own server, a fresh one for each
// check, since revisions are counted exactly. Reopening restarts the server too.
func TestConformance(t *testing.T) {
	for name, prefix := range map[string]string{"default": "", "none": "/", "longest": longest} {
		if name != "longest" && os.Getenv("ORCHESTRATE_LONG") == "" {
			continue
		}
		opts := etcd.Options{Prefix: prefix}
		t.Run("prefix "+name, func(t *testing.T) {
			members := map[store.Store]*embed.Member{}
			dirs := map[store.Store]string{}
			openIn := func(t testing.TB, dir string) store.Store {
				m := start(t, alone(dir))
				s := open(t, m, opts)
				members[s], dirs[s] = m, dir
				return s
			}
			storetest.Run(t, storetest.Harness{
				Open: func(t testing.TB) store.Store { return openIn(t, t.TempDir()) },
				Reopen: func(t testing.TB, s store.Store) store.Store {
					if err := s.Close(); err != nil {
						t.Fatalf("Close: %v", err)
					}
					if err := members[s].Close(); err != nil {
						t.Fatalf("Close: %v", err)
					}
					return openIn(t, dirs[s])
				},
				Shared: true,
			})
		})
	}
}
