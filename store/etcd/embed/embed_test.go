//go:build linux

package embed_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/embed"
)

// TestMain gives connections between members the time to end: etcd's wrapper
// sets a read's deadline anew while net/http, to end the read, sets it to the
// past, so one of them may wait for its five seconds.
func TestMain(m *testing.M) {
	if text := os.Getenv(fullEnv); text != "" {
		if err := fill(text); err != nil {
			panic(err)
		}
		return
	}
	code := m.Run()
	var err error
	for end := time.Now().Add(15 * time.Second); code == 0 && time.Now().Before(end); {
		if err = goleak.Find(); err == nil { // this waits a little by itself
			os.Exit(0)
		}
	}
	if err != nil {
		fmt.Println("goroutines are left:", err)
		code = 1
	}
	os.Exit(code)
}

// address is one that is free at the moment.
func address(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// options are a member's, with TLS if certs are given.
func options(t *testing.T, name string, certs embed.TLS) embed.Options {
	t.Helper()
	scheme := "http://"
	if certs != (embed.TLS{}) {
		scheme = "https://"
	}
	return embed.Options{
		Name: name, Dir: filepath.Join(t.TempDir(), name), PeerURL: scheme + address(t), ClientURL: scheme + address(t),
		PeerTLS: certs, ClientTLS: certs,
		Heartbeat: 50 * time.Millisecond, Election: 500 * time.Millisecond, Logger: logger(),
	}
}

func logger() *slog.Logger {
	if os.Getenv("ETCD_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// cluster starts members, which must be started together.
func cluster(t *testing.T, all ...embed.Options) []*embed.Member {
	t.Helper()
	names := map[string]string{}
	for _, opts := range all {
		names[opts.Name] = opts.PeerURL
	}
	members := make([]*embed.Member, len(all))
	var starting sync.WaitGroup
	for i, opts := range all {
		opts.Members = names
		starting.Go(func() { members[i] = start(t, opts) })
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return members
}

// start starts a member that is closed with the test.
func start(t *testing.T, opts embed.Options) *embed.Member {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	m, err := embed.Start(ctx, opts)
	if err != nil {
		t.Errorf("Start %s: %v", opts.Name, err)
		return nil
	}
	t.Cleanup(func() { closed(t, m) })
	return m
}

func closed(t *testing.T, m *embed.Member) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Errorf("Close %s: %v", m.Name(), err)
	}
}

// open opens a store at a member that is closed with the test.
func open(t *testing.T, m *embed.Member, opts etcd.Options) *etcd.Store {
	t.Helper()
	s, err := m.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func commit(t *testing.T, s store.Store, writes ...store.Write) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		revision, err := s.Commit(ctx, store.Txn{Writes: writes})
		if err == nil {
			return revision
		}
		if !errors.Is(err, etcd.ErrUnavailable) || ctx.Err() != nil {
			t.Fatalf("Commit: %v", err)
		}
	}
}

// TestThreeMembersWithTLS has three members in one process, which speak with
// each other and with stores by TLS only, and loses one of them.
func TestThreeMembersWithTLS(t *testing.T) {
	ca := newAuthority(t)
	certs := ca.issue(t, "member")
	members := cluster(t, options(t, "a", certs), options(t, "b", certs), options(t, "c", certs))
	var endpoints []string
	for _, m := range members {
		endpoints = append(endpoints, m.Endpoint())
	}
	s := open(t, members[0], etcd.Options{Endpoints: endpoints})
	first := commit(t, s, store.Put("/a", []byte("1")))
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	infos, err := members[0].Members(t.Context())
	if err != nil || len(infos) != 3 {
		t.Fatalf("Members = %+v, %v; want three", infos, err)
	}
	leaders := 0
	for i, info := range infos {
		if info.Leader {
			leaders++
		}
		if info.Learner || info.ID == "" || !strings.HasPrefix(info.PeerURL, "https://") || !strings.HasPrefix(info.ClientURL, "https://") {
			t.Errorf("member %d is %+v, want one that votes, by TLS", i, info)
		}
	}
	if leaders != 1 {
		t.Errorf("%d of %+v lead, want 1", leaders, infos)
	}

	closed(t, members[1])
	if second := commit(t, s, store.Put("/a", []byte("2"))); second <= first {
		t.Errorf("revision %d after %d", second, first)
	}

	// Without a certificate of the CA there is no way in.
	for name, config := range map[string]*tls.Config{
		"no certificate":      {InsecureSkipVerify: true},
		"of another CA":       clientOf(t, newAuthority(t).issue(t, "other")),
		"servers not trusted": {},
	} {
		other, err := etcd.Open(etcd.Options{Endpoints: endpoints[:1], TLS: config, Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := other.Get(t.Context(), "/a"); !errors.Is(err, etcd.ErrUnavailable) {
			t.Errorf("Get with %s: %v, want ErrUnavailable", name, err)
		}
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, url := range []string{members[0].Endpoint(), members[0].PeerURL()} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
		answer := make([]byte, 64)
		n, _ := conn.Read(answer)
		if bytes.Contains(answer[:n], []byte("200 OK")) {
			t.Errorf("%s answers without TLS: %q", url, answer[:n])
		}
		conn.Close()
	}
}

func clientOf(t *testing.T, certs embed.TLS) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certs.Cert, certs.Key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true}
}

// TestReplace loses a member and its folder, and puts another in its place.
func TestReplace(t *testing.T) {
	members := cluster(t, options(t, "a", embed.TLS{}), options(t, "b", embed.TLS{}), options(t, "c", embed.TLS{}))
	s := open(t, members[0], etcd.Options{})
	for i := range 50 {
		commit(t, s, store.Put(fmt.Sprintf("/k/%d", i), []byte("x")))
	}
	closed(t, members[2])

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	next := options(t, "d", embed.TLS{})
	invitation, err := members[0].Replace(ctx, "c", "d", next.PeerURL)
	if err != nil {
		t.Fatalf("Replace: %v", err)
	}
	again, err := members[1].Replace(ctx, "c", "d", next.PeerURL) // as after an interruption
	if err != nil || fmt.Sprint(again) != fmt.Sprint(invitation) {
		t.Errorf("Replace again = %v, %v; want %v", again, err, invitation)
	}
	next.Join = invitation
	d, err := embed.Start(ctx, next)
	if err != nil {
		t.Fatalf("Start of the new member: %v", err)
	}
	defer func() { closed(t, d) }()
	infos, err := d.Members(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, info := range infos {
		names = append(names, info.Name)
		if info.Learner {
			t.Errorf("%s does not vote after Start", info.Name)
		}
	}
	if len(names) != 3 || strings.Contains(strings.Join(names, ""), "c") {
		t.Errorf("members are %v, want a, b and d", names)
	}
	// It bears the loss of another now, by itself and the one that is left.
	closed(t, members[1])
	mine := open(t, d, etcd.Options{})
	commit(t, mine, store.Put("/k/last", nil))
	snapshot, err := mine.List(ctx, "/k/")
	if err != nil || len(snapshot.Items) != 51 {
		t.Errorf("the new member lists %d items, %v; want 51", len(snapshot.Items), err)
	}
	// What is refused changes nothing.
	for name, url := range map[string]string{"a": "http://" + address(t), "e": members[0].PeerURL()} {
		if _, err := d.Invite(ctx, name, url); !errors.Is(err, embed.ErrInUse) {
			t.Errorf("Invite of %s at %s: %v, want ErrInUse", name, url, err)
		}
	}
	if _, err := d.Replace(ctx, "b", "a", "http://"+address(t)); !errors.Is(err, embed.ErrInUse) {
		t.Errorf("Replace of b by a second a: %v, want ErrInUse", err)
	}
	if infos, err := d.Members(ctx); err != nil || len(infos) != 3 {
		t.Errorf("members after a refusal are %+v, %v; want three", infos, err)
	}
	if err := d.Remove(ctx, "nobody"); !errors.Is(err, embed.ErrNotFound) {
		t.Errorf("Remove of nobody: %v, want ErrNotFound", err)
	}
	// Started again it is who it was, whatever its options say of the others.
	closed(t, d)
	d, err = embed.Start(ctx, next)
	if err != nil {
		t.Fatalf("second start of the new member: %v", err)
	}
}

// TestRestore restores a snapshot as a new cluster of two, under a watch that
// has seen more than the snapshot has.
func TestRestore(t *testing.T) {
	old := start(t, options(t, "a", embed.TLS{}))
	s := open(t, old, etcd.Options{})
	commit(t, s, store.Put("/kept", []byte("1")))
	lease, err := s.Lease(t.Context(), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, store.PutLeased("/alive", nil, lease.ID()))
	var file bytes.Buffer
	n, err := old.Snapshot(t.Context(), &file)
	if err != nil || n != int64(file.Len()) || n == 0 {
		t.Fatalf("Snapshot = %d, %v with %d bytes", n, err, file.Len())
	}
	seen := commit(t, s, store.Put("/after", []byte("2")))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	closed(t, old)

	path := filepath.Join(t.TempDir(), "snapshot.db")
	all := []embed.Options{options(t, "x", embed.TLS{}), options(t, "y", embed.TLS{})}
	for i := range all {
		all[i].Members = map[string]string{"x": all[0].PeerURL, "y": all[1].PeerURL}
		all[i].Cluster = "restored"
	}
	for name, content := range map[string][]byte{
		"cut off": file.Bytes()[:file.Len()-512],
		"damaged": append(append([]byte{}, file.Bytes()[:4096]...), append([]byte{file.Bytes()[4096] ^ 1}, file.Bytes()[4097:]...)...),
		"empty":   nil,
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := embed.Restore(path, all[0]); !errors.Is(err, embed.ErrSnapshot) {
			t.Errorf("Restore of a snapshot that is %s: %v, want ErrSnapshot", name, err)
		}
	}
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, opts := range all {
		if err := embed.Restore(path, opts); err != nil {
			t.Fatalf("Restore: %v", err)
		}
	}
	var wrong *embed.OptionError
	if err := embed.Restore(path, all[0]); !errors.As(err, &wrong) || wrong.Option != "Dir" {
		t.Errorf("Restore into a folder in use: %v, want an *OptionError about Dir", err)
	}
	members := cluster(t, all...)
	fresh := open(t, members[1], etcd.Options{})
	snapshot, err := fresh.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, item := range snapshot.Items {
		if item.Key != "/alive" { // if its lease is over by now
			keys = append(keys, item.Key)
		}
	}
	if strings.Join(keys, " ") != "/kept" || snapshot.Revision <= seen {
		t.Errorf("restored %v at %d, want /kept alone and a revision beyond %d, which somebody has seen", keys, snapshot.Revision, seen)
	}
	batches, err := fresh.Watch(t.Context(), "/", seen)
	if err != nil {
		t.Fatal(err)
	}
	if batch := <-batches; !errors.Is(batch.Err, store.ErrCompacted) {
		t.Errorf("watch from before the restoration got %+v, want ErrCompacted", batch)
	}
	// The lease's owner is gone: it ends.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		_, found, err := fresh.Get(t.Context(), "/alive")
		if err != nil {
			t.Fatal(err)
		}
		if !found {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the restored lease of an owner that is gone did not expire")
		}
	}
}

// TestNoSpace uses a small quota up and makes room again.
func TestNoSpace(t *testing.T) {
	opts := options(t, "a", embed.TLS{})
	opts.Quota = 4 << 20
	m := start(t, opts)
	s := open(t, m, etcd.Options{})
	value := make([]byte, 256<<10)
	var err error
	for i := 0; err == nil && i < 200; i++ {
		_, err = s.Commit(t.Context(), store.Txn{Writes: []store.Write{store.Put("/large", value)}})
	}
	if !errors.Is(err, etcd.ErrNoSpace) {
		t.Fatalf("Commit beyond the quota: %v, want ErrNoSpace", err)
	}
	if err := s.Check(t.Context()); !errors.Is(err, etcd.ErrNoSpace) {
		t.Errorf("Check: %v, want ErrNoSpace", err)
	}
	if _, err := s.Commit(t.Context(), store.Txn{Writes: []store.Write{store.Delete("/large")}}); err != nil {
		t.Errorf("deletion beyond the quota: %v", err)
	}
	if err := m.Reclaim(t.Context()); err != nil {
		t.Fatalf("Reclaim: %v", err)
	}
	commit(t, s, store.Put("/large", value))
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("Check after Reclaim: %v", err)
	}
}

// TestStartRefuses has options that must be refused before anything listens or
// is made.
func TestStartRefuses(t *testing.T) {
	certs := newAuthority(t).issue(t, "a")
	for name, c := range map[string]struct {
		change func(*embed.Options)
		option string
	}{
		"no name":             {func(o *embed.Options) { o.Name = "" }, "Name"},
		"a name with comma":   {func(o *embed.Options) { o.Name = "a,b" }, "Name"},
		"no folder":           {func(o *embed.Options) { o.Dir = "" }, "Dir"},
		"no URL":              {func(o *embed.Options) { o.ClientURL = "" }, "ClientURL"},
		"a URL without port":  {func(o *embed.Options) { o.ClientURL = "http://127.0.0.1" }, "ClientURL"},
		"another scheme":      {func(o *embed.Options) { o.PeerURL = "ftp://127.0.0.1:1" }, "PeerURL"},
		"open clients":        {func(o *embed.Options) { o.ClientURL = "http://10.0.0.1:2379" }, "ClientURL"},
		"open peers":          {func(o *embed.Options) { o.PeerListen = "0.0.0.0:2380" }, "PeerURL"},
		"open name":           {func(o *embed.Options) { o.ClientURL, o.ClientListen = "http://etcd:2379", "127.0.0.1:0" }, "ClientURL"},
		"listen on a name":    {func(o *embed.Options) { o.ClientURL = "https://etcd:2379"; o.ClientTLS = certs }, "ClientListen"},
		"TLS without files":   {func(o *embed.Options) { o.ClientURL = "https://127.0.0.1:0" }, "ClientTLS"},
		"TLS with half":       {func(o *embed.Options) { o.PeerURL = "https://127.0.0.1:0"; o.PeerTLS.Cert = certs.Cert }, "PeerTLS"},
		"TLS with no CA":      {func(o *embed.Options) { o.PeerURL = "https://127.0.0.1:0"; o.PeerTLS = certs; o.PeerTLS.CA = "" }, "PeerTLS"},
		"files that are not":  {func(o *embed.Options) { o.PeerURL = "https://127.0.0.1:0"; o.PeerTLS = certs; o.PeerTLS.Key = "/none" }, "PeerTLS"},
		"files without https": {func(o *embed.Options) { o.PeerTLS = certs }, "PeerTLS"},
		"six members": {func(o *embed.Options) {
			o.Members = map[string]string{"1": "", "2": "", "3": "", "4": "", "5": "", "6": ""}
		}, "Members"},
		"not among members":    {func(o *embed.Options) { o.Members = map[string]string{"b": "http://127.0.0.1:1"} }, "Members"},
		"both new and joining": {func(o *embed.Options) { o.Members = map[string]string{"a": o.PeerURL}; o.Join = new(embed.Invitation) }, "Join"},
		"no history":           {func(o *embed.Options) { o.History = -1 }, "History"},
		"a negative quota":     {func(o *embed.Options) { o.Quota = -1 }, "Quota"},
		"a short election":     {func(o *embed.Options) { o.Election = 2 * o.Heartbeat }, "Election"},
		"no heart":             {func(o *embed.Options) { o.Heartbeat = -1 }, "Heartbeat"},
		"a relative socket":    {func(o *embed.Options) { o.ClientURL = "unix://run/etcd.sock" }, "ClientURL"},
		"a peer's socket":      {func(o *embed.Options) { o.PeerURL = "unix:///run/etcd.sock" }, "PeerURL"},
	} {
		t.Run(name, func(t *testing.T) {
			opts := options(t, "a", embed.TLS{})
			c.change(&opts)
			m, err := embed.Start(t.Context(), opts)
			var wrong *embed.OptionError
			if !errors.As(err, &wrong) || wrong.Option != c.option {
				t.Errorf("Start: %v, want an *OptionError about %s", err, c.option)
			}
			if err == nil {
				closed(t, m)
			}
			if _, err := os.Stat(opts.Dir); err == nil && opts.Dir != "" {
				t.Errorf("%s was made", opts.Dir)
			}
		})
	}
}

// TestStartEndsWithItsContext starts one of two members alone.
func TestStartEndsWithItsContext(t *testing.T) {
	opts := options(t, "a", embed.TLS{})
	opts.Members = map[string]string{"a": opts.PeerURL, "b": "http://" + address(t)}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := embed.Start(ctx, opts); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start of half a cluster: %v, want the context's error", err)
	}
}

// TestRemoved removes a member that runs: it says so.
func TestRemoved(t *testing.T) {
	members := cluster(t, options(t, "a", embed.TLS{}), options(t, "b", embed.TLS{}), options(t, "c", embed.TLS{}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	removed := options(t, "d", embed.TLS{}) // a fourth, since its Close reports
	invitation, err := members[0].Invite(ctx, "d", removed.PeerURL)
	if err != nil {
		t.Fatal(err)
	}
	removed.Join = invitation
	d, err := embed.Start(ctx, removed)
	if err != nil {
		t.Fatal(err)
	}
	if err := members[0].Remove(ctx, "d"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.Done():
	case <-ctx.Done():
		t.Fatal("a member that was removed runs on")
	}
	if err := d.Err(); err == nil {
		t.Error("Err is nil after the member stopped by itself")
	}
	if err := d.Close(); err == nil {
		t.Error("Close says nothing about why the member had stopped")
	}
}
