//go:build unix

package etcd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	server "go.etcd.io/etcd/server/v3/embed"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/internal/etcdtest"
	"github.com/orchestrate-go/orchestrate/store/etcd/internal/zapslog"
)

// TestPasswords has an agent that may read its tasks and write its status, in a
// fleet's prefix, and nothing else.
func TestPasswords(t *testing.T) {
	ctx := t.Context()
	m := start(t, alone(t.TempDir()))
	root := open(t, m, etcd.Options{})
	put(t, root, "/tasks/n1/a", []byte("mine"))
	put(t, root, "/tasks/n2/a", []byte("not mine"))
	c := root.Client()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	grant := func(role, prefix string, kind clientv3.PermissionType) {
		t.Helper()
		key := root.Prefix() + prefix
		must(c.RoleGrantPermission(ctx, role, key, clientv3.GetPrefixRangeEnd(key), kind))
	}
	must(c.RoleAdd(ctx, "n1"))
	grant("n1", "/tasks/n1/", clientv3.PermissionType(clientv3.PermRead))
	grant("n1", "/status/n1/", clientv3.PermissionType(clientv3.PermReadWrite))
	must(c.UserAdd(ctx, "n1", "secret"))
	must(c.UserGrantRole(ctx, "n1", "n1"))
	must(c.UserAdd(ctx, "root", "rooted"))
	must(c.UserGrantRole(ctx, "root", "root"))
	must(c.AuthEnable(ctx))

	if _, err := m.Open(etcd.Options{Username: "n1", Password: "wrong", Timeout: time.Minute}); !errors.Is(err, etcd.ErrUnauthenticated) {
		t.Errorf("Open with a wrong password: %v, want ErrUnauthenticated", err)
	}
	if _, err := root.List(ctx, ""); !errors.Is(err, etcd.ErrUnauthenticated) {
		t.Errorf("List without a user: %v, want ErrUnauthenticated", err)
	}
	agent := open(t, m, etcd.Options{Username: "n1", Password: "secret"})
	if err := agent.Check(ctx); err != nil && !errors.Is(err, etcd.ErrDenied) {
		t.Errorf("Check: %v", err)
	}
	if s, err := agent.List(ctx, "/tasks/n1/"); err != nil || len(s.Items) != 1 {
		t.Errorf("List of its tasks = %+v, %v; want one", s, err)
	}
	if _, err := agent.Commit(ctx, store.Txn{If: []store.Condition{store.Absent("/status/n1/a")}, Writes: []store.Write{store.Put("/status/n1/a", nil)}}); err != nil {
		t.Errorf("Commit of its status: %v", err)
	}
	for name, try := range map[string]func() error{
		"List of another's tasks": func() error { _, err := agent.List(ctx, "/tasks/n2/"); return err },
		"List of all tasks":       func() error { _, err := agent.List(ctx, "/tasks/"); return err },
		"Get of another's":        func() error { _, _, err := agent.Get(ctx, "/tasks/n2/a"); return err },
		"Commit to its tasks": func() error {
			_, err := agent.Commit(ctx, store.Txn{Writes: []store.Write{store.Put("/tasks/n1/b", nil)}})
			return err
		},
		"Commit about another's": func() error {
			_, err := agent.Commit(ctx, store.Txn{If: []store.Condition{store.Absent("/tasks/n2/x")}, Writes: []store.Write{store.Put("/status/n1/b", nil)}})
			return err
		},
		"Watch of another's status": func() error { return watched(agent.Watch(ctx, "/status/n2/", 0)) },
	} {
		if err := try(); !errors.Is(err, etcd.ErrDenied) {
			t.Errorf("%s: %v, want ErrDenied", name, err)
		}
	}
	// Who holds the member needs no user.
	if _, err := m.Members(ctx); err != nil {
		t.Errorf("Members: %v", err)
	}
	if _, err := m.Snapshot(ctx, &bytes.Buffer{}); err != nil {
		t.Errorf("Snapshot: %v", err)
	}
	if err := m.Reclaim(ctx); err != nil {
		t.Errorf("Reclaim: %v", err)
	}
}

// watched is the error that a watch ends with.
func watched(batches <-chan store.Batch, err error) error {
	if err != nil {
		return err
	}
	timeout := time.NewTimer(time.Minute)
	defer timeout.Stop()
	for {
		select {
		case batch, open := <-batches:
			if !open || batch.Err != nil {
				return batch.Err
			}
		case <-timeout.C:
			return errors.New("the watch goes on")
		}
	}
}

// TestSmallServer is a server of etcd's own package, with less than the defaults
// allow.
func TestSmallServer(t *testing.T) {
	config := server.NewConfig()
	config.Dir = t.TempDir()
	socket, err := url.Parse("unix://" + config.Dir + "/etcd.sock")
	if err != nil {
		t.Fatal(err)
	}
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*socket}, []url.URL{*socket}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.ZapLoggerBuilder = server.NewZapLoggerBuilder(zapslog.New(etcdtest.Logger()))
	config.MaxTxnOps, config.MaxRequestBytes = 16, 64<<10
	small, err := server.StartEtcd(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(small.Close)
	<-small.Server.ReadyNotify()
	s := dial(t, []string{socket.String()})
	var limit *etcd.ServerLimitError
	if err := s.Check(t.Context()); !errors.As(err, &limit) || limit.Flag != "--max-txn-ops" {
		t.Errorf("Check: %v, want a *ServerLimitError about --max-txn-ops", err)
	}
	var txn store.Txn
	for i := range 17 {
		txn.Writes = append(txn.Writes, store.Put(fmt.Sprint("/k", i), nil))
	}
	if _, err := s.Commit(t.Context(), txn); !errors.As(err, &limit) || limit.Got != 17 || !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("Commit of 17 writes: %v, want a *ServerLimitError that is ErrTooLarge", err)
	}
	large := store.Txn{Writes: []store.Write{store.Put("/large", make([]byte, 100<<10))}}
	if _, err := s.Commit(t.Context(), large); !errors.As(err, &limit) || limit.Flag != "--max-request-bytes" {
		t.Errorf("Commit of 100 KiB: %v, want a *ServerLimitError about --max-request-bytes", err)
	}
	if snapshot, err := s.List(t.Context(), ""); err != nil || len(snapshot.Items) != 0 {
		t.Errorf("List = %+v, %v; want nothing: refused whole", snapshot, err)
	}
}

// TestPrefixes has fleets in one etcd whose prefixes begin alike.
func TestPrefixes(t *testing.T) {
	m := start(t, alone(t.TempDir()))
	a, ab := open(t, m, etcd.Options{Prefix: "/f/a"}), open(t, m, etcd.Options{Prefix: "/f/ab"})
	put(t, a, "/x", []byte("a"))
	last := put(t, ab, "/x", []byte("ab"))
	for s, want := range map[*etcd.Store]string{a: "a", ab: "ab"} {
		snapshot, err := s.List(t.Context(), "")
		if err != nil || len(snapshot.Items) != 1 || snapshot.Items[0].Key != "/x" || string(snapshot.Items[0].Value) != want || snapshot.Revision != last {
			t.Errorf("List in %s = %+v, %v; want /x=%s at %d", s.Prefix(), snapshot, err, want, last)
		}
	}
	batches, err := a.Watch(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	next(t, batches)
	put(t, ab, "/x", []byte("again"))
	want := put(t, a, "/x", []byte("again"))
	if got := next(t, batches); got.Revision != want {
		t.Errorf("watch in /f/a got a batch at %d, want %d: the other fleet's are not its", got.Revision, want)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		opts   etcd.Options
		option string
	}{
		"no endpoints":         {etcd.Options{}, "Endpoints"},
		"no scheme":            {etcd.Options{Endpoints: []string{"10.0.0.1:2379"}}, "Endpoints[0]"},
		"no port":              {etcd.Options{Endpoints: []string{"https://10.0.0.1"}}, "Endpoints[0]"},
		"a path":               {etcd.Options{Endpoints: []string{"https://10.0.0.1:2379/v3"}}, "Endpoints[0]"},
		"no TLS":               {etcd.Options{Endpoints: []string{"https://10.0.0.1:2379", "http://10.0.0.2:2379"}}, "Endpoints[1]"},
		"mixed":                {etcd.Options{Endpoints: []string{"https://10.0.0.1:2379", "http://127.0.0.1:2379"}}, "Endpoints[1]"},
		"a name like loopback": {etcd.Options{Endpoints: []string{"http://localhost.example.org:2379"}}, "Endpoints[0]"},
		"near, elsewhere":      {etcd.Options{Endpoints: []string{"https://10.0.0.1:2379"}, Near: "https://10.0.0.2:2379"}, "Near"},
		"near, by a password":  {etcd.Options{Endpoints: []string{"https://10.0.0.1:2379"}, Near: "https://10.0.0.1:2379", Username: "a", Password: "b"}, "Near"},
		"half a user":          {etcd.Options{Endpoints: []string{"https://10.0.0.1:2379"}, Username: "a"}, "Username"},
		"a negative timeout":   {etcd.Options{Endpoints: []string{"https://10.0.0.1:2379"}, Timeout: -1}, "Timeout"},
		"a relative prefix":    {etcd.Options{Endpoints: []string{"https://10.0.0.1:2379"}, Prefix: "a"}, "Prefix"},
		"a folder as prefix":   {etcd.Options{Endpoints: []string{"https://10.0.0.1:2379"}, Prefix: "/a/"}, "Prefix"},
		"a long prefix":        {etcd.Options{Endpoints: []string{"https://10.0.0.1:2379"}, Prefix: longest + "p"}, "Prefix"},
	} {
		s, err := etcd.Open(c.opts)
		var wrong *etcd.OptionError
		if !errors.As(err, &wrong) || wrong.Option != c.option {
			t.Errorf("%s: %v, want an *OptionError about %s", name, err, c.option)
		}
		if err == nil {
			s.Close()
		}
	}
}

// TestNobodyThere has calls to servers that are not there, and a watch, which
// waits.
func TestNobodyThere(t *testing.T) {
	s, err := etcd.Open(etcd.Options{Endpoints: []string{"http://127.0.0.1:1"}, Timeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, list := s.List(t.Context(), "")
	_, commit := s.Commit(t.Context(), store.Txn{Writes: []store.Write{store.Put("/a", nil)}})
	_, lease := s.Lease(t.Context(), time.Second)
	for call, err := range map[string]error{"List": list, "Commit": commit, "Lease": lease, "Check": s.Check(t.Context()), "Compact": s.Compact(t.Context(), 1)} {
		if !errors.Is(err, etcd.ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", call, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	batches, err := s.Watch(ctx, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	pause(t, time.Second) // more than a call waits
	select {
	case batch := <-batches:
		t.Errorf("watch got %+v, want it to wait", batch)
	default:
	}
	cancel()
	if _, open := <-batches; open {
		t.Error("watch goes on after its context")
	}
}
