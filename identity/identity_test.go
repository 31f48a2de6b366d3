package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// site is a control plane with a registrar that listens.
type site struct {
	testing.TB
	clock     *clock
	store     store.Store
	keys      *Keyring
	registrar *Registrar
	grants    *grants
	address   string
}

// grants is a Granter that remembers.
type grants struct {
	mu  sync.Mutex
	has map[ID]bool
	err error // of Grant
}

func (g *grants) Grant(_ context.Context, id ID) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.has[id] = true
	}
	return g.err
}

func (g *grants) Revoke(_ context.Context, id ID) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.has, id)
	return nil
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{TB: t, clock: &clock{t: time.Now()}, grants: &grants{has: map[ID]bool{}}}
	mem := memory.New(memory.Options{})
	t.Cleanup(func() { mem.Close() })
	s.store = mem
	s.keys = NewKeyring(s.authority())
	var err error
	s.registrar, err = NewRegistrar(Options{Store: s.store, Keyring: s.keys, Granter: s.grants, now: s.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.registrar.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve returned %v, want nil after its context ended", err)
		}
	})
	return s
}

func (s *site) authority() *Authority {
	s.Helper()
	a, err := newAuthority("test", 10*365*24*time.Hour, s.clock.now())
	if err != nil {
		s.Fatal(err)
	}
	return a
}

func (s *site) token(opts TokenOptions) Token {
	s.Helper()
	t, err := s.registrar.NewToken(s.Context(), opts)
	if err != nil {
		s.Fatal(err)
	}
	return t
}

func node(name string) ID { return ID{Node, name} }

func (s *site) try(t Token, id ID, dir string) (*Member, error) {
	return Join(s.Context(), JoinOptions{Address: s.address, Token: t, ID: id, Dir: dir, now: s.clock.now})
}

func (s *site) join(name string) *Member {
	s.Helper()
	m, err := s.try(s.token(TokenOptions{}), node(name), s.TempDir())
	if err != nil {
		s.Fatal(err)
	}
	return m
}

// meet makes a connection from one member to another, says a word, and hears who
// the server takes the client for.
func meet(t testing.TB, client, server *Member, want func(ID) error) (ID, error) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server.Server(Is(Node)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type met struct {
		id  ID
		err error
	}
	seen := make(chan met, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			seen <- met{err: err}
			return
		}
		defer c.Close()
		if err := c.(*tls.Conn).Handshake(); err != nil {
			seen <- met{err: err}
			return
		}
		id, err := Peer(c.(*tls.Conn).ConnectionState())
		_, _ = io.WriteString(c, "hello")
		seen <- met{id, err}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), client.Client(want))
	if err != nil {
		l.Close()
		<-seen
		return ID{}, err
	}
	defer c.Close()
	if _, err := io.ReadAll(c); err != nil {
		<-seen
		return ID{}, err // the server refused the client's certificate
	}
	m := <-seen
	return m.id, m.err
}

func TestJoin(t *testing.T) {
	s := newSite(t)
	a, b := s.join("a"), s.join("b")
	if got, err := meet(t, a, b, Exactly(node("b"))); err != nil || got != a.ID() {
		t.Errorf("a connects to b: the server sees %v, error %v; want %v", got, err, a.ID())
	}
	var denied *DeniedError
	if _, err := meet(t, a, b, Exactly(node("c"))); !errors.As(err, &denied) || denied.ID != node("b") {
		t.Errorf("a wants c and meets b: got %v, want a DeniedError that names b", err)
	}
	if _, err := meet(t, a, b, Is(Control)); !errors.As(err, &denied) {
		t.Errorf("a wants a control plane and meets b: got %v, want a DeniedError", err)
	}
	if !s.grants.has[node("a")] || !s.grants.has[node("b")] {
		t.Errorf("access was given to %v, want both nodes", s.grants.has)
	}
	members, err := s.registrar.Members(t.Context())
	if err != nil || len(members) != 2 || members[0].ID != node("a") {
		t.Errorf("members: got %v, %v; want a and b", members, err)
	}
}

func TestRefusedJoins(t *testing.T) {
	s := newSite(t)
	s.join("taken")
	good := s.token(TokenOptions{})
	wrong, err := newToken(good.pin)
	if err != nil {
		t.Fatal(err)
	}
	changed := good
	changed.secret = wrong.secret
	otherPin := good
	otherPin.pin[0] ^= 1
	expired := s.token(TokenOptions{TTL: time.Minute})
	cancelled := s.token(TokenOptions{})
	if err := s.registrar.CancelToken(t.Context(), cancelled); err != nil {
		t.Fatal(err)
	}
	s.clock.pass(2 * time.Minute)
	used := s.token(TokenOptions{})
	if _, err := s.try(used, node("first"), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what  string
		token Token
		id    ID
		want  error
	}{
		{"an unknown token", wrong, node("n"), ErrToken},
		{"another secret", changed, node("n"), ErrToken},
		{"another authority's token", otherPin, node("n"), ErrAuthority},
		{"an expired token", expired, node("n"), ErrTokenExpired},
		{"a cancelled token", cancelled, node("n"), ErrToken},
		{"a used token, for the same name", used, node("first"), ErrTokenUsed},
		{"a used token, for another name", used, node("second"), ErrTokenUsed},
		{"a name that is in use", s.token(TokenOptions{}), node("taken"), ErrNameInUse},
		{"a node's token for a control plane", s.token(TokenOptions{}), ID{Control, "n"}, ErrToken},
		{"a token for another name", s.token(TokenOptions{Name: "m"}), node("n"), ErrToken},
		{"a control plane's token for a node", s.token(TokenOptions{Role: Control}), node("n"), ErrToken},
	} {
		if _, err := s.try(c.token, c.id, t.TempDir()); !errors.Is(err, c.want) {
			t.Errorf("join with %s: got %v, want %v", c.what, err, c.want)
		}
	}
	for _, id := range []ID{{}, {"king", "n"}, node(""), node("a b"), node("a/b"), node(strings.Repeat("n", 60))} {
		if _, err := s.try(good, id, t.TempDir()); err == nil {
			t.Errorf("join as %q: got nil, want an error about the name", id)
		}
	}
	// None of it has used the good token up.
	if _, err := s.try(good, node("n"), t.TempDir()); err != nil {
		t.Errorf("join with the good token after all: %v", err)
	}
}

// A machine that was killed before the answer came asks again and gets it; so
// does one whose answer was the last thing to fail.
func TestJoinAgain(t *testing.T) {
	s := newSite(t)
	token, dir := s.token(TokenOptions{}), t.TempDir()
	s.grants.err = errors.New("not now")
	if _, err := s.try(token, node("n"), dir); err == nil {
		t.Fatal("join without access: got nil, want an error")
	}
	s.grants.err = nil
	m, err := s.try(token, node("n"), dir)
	if err != nil {
		t.Fatalf("join again after a failure: %v", err)
	}
	again, err := open(dir, s.clock.now)
	if err != nil {
		t.Fatal(err)
	}
	if again.ID() != m.ID() || !again.Expires().Equal(m.Expires()) {
		t.Errorf("opened again: got %v until %v, want %v until %v", again.ID(), again.Expires(), m.ID(), m.Expires())
	}
	info, err := os.Stat(filepath.Join(dir, fileMember))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the member's file: %v, %v; want mode 0600: it has the key", info.Mode(), err)
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open an empty folder: got %v, want ErrNotExist", err)
	}
}

// Whoever joined with a token, and was revoked and forgotten since, does not come
// back with it, not even with the key that it joined with.
func TestUsedTokenOutlivesItsMember(t *testing.T) {
	s := newSite(t)
	token, dir := s.token(TokenOptions{}), t.TempDir()
	s.grants.err = errors.New("not now") // so that the key to join with is kept
	if _, err := s.try(token, node("n"), dir); err == nil {
		t.Fatal("join without access: got nil, want an error")
	}
	s.grants.err = nil
	if err := s.registrar.Revoke(t.Context(), node("n")); err != nil {
		t.Fatal(err)
	}
	if err := s.registrar.Forget(t.Context(), node("n")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.try(token, node("n"), dir); !errors.Is(err, ErrTokenUsed) {
		t.Errorf("join with the token and the key of a member that was forgotten: got %v, want ErrTokenUsed", err)
	}
	if s.grants.has[node("n")] {
		t.Error("it has its access again")
	}
	if _, err := s.try(s.token(TokenOptions{}), node("n"), dir); err != nil {
		t.Errorf("join with a fresh token: %v", err)
	}
}

func TestRenew(t *testing.T) {
	s := newSite(t)
	m := s.join("n")
	before := m.Expires()
	// A copy of the folder, as a thief or a restored backup has it.
	copied, err := open(m.dir, s.clock.now)
	if err != nil {
		t.Fatal(err)
	}
	s.clock.pass(13 * time.Hour)
	if err := m.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !m.Expires().After(before) {
		t.Errorf("after Renew the certificate ends at %v, as before", m.Expires())
	}
	reopened, err := open(m.dir, s.clock.now)
	if err != nil || !reopened.Expires().Equal(m.Expires()) {
		t.Errorf("the renewed member was not kept: %v", err)
	}
	// An answer that got lost: the member still has the certificate before.
	lost, err := open(m.dir, s.clock.now)
	if err != nil {
		t.Fatal(err)
	}
	lost.dir = ""
	if err := lost.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Renew(t.Context()); err != nil {
		t.Errorf("renew with the certificate before the last: %v", err)
	}
	copied.dir = ""
	if err := copied.Renew(t.Context()); !errors.Is(err, ErrNameInUse) {
		t.Errorf("renew with a certificate that is two renewals old: got %v, want ErrNameInUse", err)
	}
	s.clock.pass(25 * time.Hour)
	if err := m.Renew(t.Context()); !errors.Is(err, ErrExpired) {
		t.Errorf("renew with an expired certificate: got %v, want ErrExpired", err)
	}
	if _, err := open(m.dir, s.clock.now); !errors.Is(err, ErrExpired) {
		t.Errorf("open with an expired certificate: got %v, want ErrExpired", err)
	}
}

func TestRevoke(t *testing.T) {
	s := newSite(t)
	m := s.join("n")
	if err := s.registrar.Forget(t.Context(), m.ID()); !errors.Is(err, ErrNameInUse) {
		t.Errorf("Forget of a member in good standing: got %v, want ErrNameInUse", err)
	}
	if err := s.registrar.Revoke(t.Context(), m.ID()); err != nil {
		t.Fatal(err)
	}
	if s.grants.has[m.ID()] {
		t.Error("a revoked member has its access still")
	}
	if err := m.Renew(t.Context()); !errors.Is(err, ErrRevoked) {
		t.Errorf("renewal of a revoked member: got %v, want ErrRevoked", err)
	}
	if _, err := s.try(s.token(TokenOptions{}), m.ID(), t.TempDir()); !errors.Is(err, ErrRevoked) {
		t.Errorf("join with a revoked name: got %v, want ErrRevoked", err)
	}
	if err := s.registrar.Revoke(t.Context(), node("nobody")); !errors.Is(err, ErrUnknown) {
		t.Errorf("Revoke of nobody: got %v, want ErrUnknown", err)
	}
	if err := s.registrar.Forget(t.Context(), m.ID()); err != nil {
		t.Fatal(err)
	}
	if err := m.Renew(t.Context()); !errors.Is(err, ErrUnknown) {
		t.Errorf("renewal of a forgotten member: got %v, want ErrUnknown", err)
	}
	if _, err := s.try(s.token(TokenOptions{}), m.ID(), t.TempDir()); err != nil {
		t.Errorf("join with a forgotten name: %v", err)
	}
}

// An authority takes over from another while members meet all the time, whatever
// each has heard of it so far.
func TestRotation(t *testing.T) {
	s := newSite(t)
	a, b := s.join("a"), s.join("b")
	both := func(when string) {
		t.Helper()
		for _, pair := range [][2]*Member{{a, b}, {b, a}} {
			if _, err := meet(t, pair[0], pair[1], Is(Node)); err != nil {
				t.Errorf("%s: %v connects to %v: %v", when, pair[0].ID(), pair[1].ID(), err)
			}
		}
	}
	renew := func(m *Member) {
		t.Helper()
		if err := m.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	old, _ := s.keys.state()
	next := s.authority()
	s.keys.Trust(next.Certificate())
	renew(a)
	both("one knows the new authority")
	renew(b)
	both("both know it")
	s.keys.SignWith(next)
	if err := s.keys.Distrust(next.Certificate()); err == nil {
		t.Error("Distrust of who signs: got nil, want an error")
	}
	renew(a)
	both("one has a certificate of the new authority")
	renew(b)
	both("both have")
	if err := s.keys.Distrust(old.Certificate()); err != nil {
		t.Fatal(err)
	}
	renew(a)
	both("one has forgotten the old authority")
	// Who slept through all of it is refused.
	late := newMember(node("late"))
	late.now = s.clock.now
	g, err := s.registrar.issueWith(old, late)
	if err != nil {
		t.Fatal(err)
	}
	_ = g
	if _, err := meet(t, late, a, Is(Node)); err == nil {
		t.Error("a certificate of the old authority is taken still")
	}
}

// issueWith gives a member a certificate of some authority.
func (r *Registrar) issueWith(a *Authority, m *Member) (grant, error) {
	ring := NewKeyring(a)
	tmp, err := ring.Member(m.id, nil, time.Hour)
	if err != nil {
		return grant{}, err
	}
	tmp.now = m.now
	if err := tmp.Renew(context.Background()); err != nil {
		return grant{}, err
	}
	m.cert, m.roots = tmp.cert, tmp.roots
	return grant{}, nil
}

// Run renews in time, and says when the fleet does not know the member any more.
func TestRunEndsWhenRevoked(t *testing.T) {
	s := newSite(t)
	m := s.join("n")
	if err := s.registrar.Revoke(t.Context(), m.ID()); err != nil {
		t.Fatal(err)
	}
	s.clock.pass(13 * time.Hour) // it is time to renew
	if err := m.Run(t.Context()); !errors.Is(err, ErrRevoked) {
		t.Errorf("Run of a revoked member: got %v, want ErrRevoked", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.join("o").Run(ctx); err != nil {
		t.Errorf("Run whose context has ended: got %v, want nil", err)
	}
}

// Many machines that race for one token, or for one name: one wins.
func TestRaces(t *testing.T) {
	s := newSite(t)
	one := s.token(TokenOptions{})
	var tokens []Token
	for range 8 {
		tokens = append(tokens, s.token(TokenOptions{}))
	}
	race := func(what string, try func(i int) error) {
		t.Helper()
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for i := range 8 {
			dir := i
			wg.Go(func() {
				err := try(dir)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
				} else if !errors.Is(err, ErrTokenUsed) && !errors.Is(err, ErrNameInUse) {
					t.Errorf("%s: %v", what, err)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Errorf("%s: %d of 8 won, want 1", what, won)
		}
	}
	dirs := make([]string, 16)
	for i := range dirs {
		dirs[i] = t.TempDir()
	}
	race("one token", func(i int) error {
		_, err := s.try(one, node(string(rune('a'+i))), dirs[i])
		return err
	})
	race("one name", func(i int) error {
		_, err := s.try(tokens[i], node("x"), dirs[8+i])
		return err
	})
}

func TestToken(t *testing.T) {
	tok, err := newToken([32]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseToken(tok.Text() + "\n"); err != nil || got != tok {
		t.Errorf("ParseToken of its text: got %v, %v", got, err)
	}
	if strings.Contains(tok.String(), tok.secret) {
		t.Error("String shows the secret")
	}
	for _, bad := range []string{"", "x", tok.String(), strings.ToUpper(tok.Text()), tok.Text()[:60], tok.Text() + "a", strings.Replace(tok.Text(), tok.secret, tok.id, 1)} {
		_, err := ParseToken(bad)
		if !errors.Is(err, ErrToken) {
			t.Errorf("ParseToken(%q): got %v, want ErrToken", bad, err)
		}
		if err != nil && strings.Contains(err.Error(), tok.secret) {
			t.Errorf("the error %q repeats the secret", err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	tok, err := newToken([32]byte{9})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tok.Text())
	f.Add(tokenPrefix + "...")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseToken(text)
		if err == nil && got.Text() != strings.TrimSpace(text) {
			t.Errorf("%q is read as %q", text, got.Text())
		}
	})
}

// What is kept of a token is nothing that one could join with.
func TestStoreHasNoSecrets(t *testing.T) {
	s := newSite(t)
	tok := s.token(TokenOptions{})
	snapshot, err := s.store.List(t.Context(), "/")
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range snapshot.Items {
		if strings.Contains(string(item.Value), tok.secret) || strings.Contains(string(item.Value), "PRIVATE") {
			t.Errorf("%s has a secret: %s", item.Key, item.Value)
		}
	}
}

func TestAuthorityKeeps(t *testing.T) {
	a, err := NewAuthority("shop", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	b, err := ParseAuthority(cert, key)
	if err != nil || !b.Certificate().Equal(a.Certificate()) {
		t.Errorf("read back: %v", err)
	}
	other, err := NewAuthority("shop", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	_, otherKey, err := other.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseAuthority(cert, otherKey); err == nil {
		t.Error("a certificate with another's key: got nil, want an error")
	}
	if _, err := ParseAuthority(key, cert); err == nil {
		t.Error("certificate and key in each other's place: got nil, want an error")
	}
}

// A machine joins and renews at whichever registrar answers, and a refusal is an
// answer.
func TestFurtherRegistrars(t *testing.T) {
	s := newSite(t)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := gone.Addr().String()
	gone.Close()
	dir, token := t.TempDir(), s.token(TokenOptions{})
	opts := JoinOptions{Address: dead, Further: []string{dead, s.address}, Token: token, ID: node("n1"), Dir: dir, now: s.clock.now}
	m, err := Join(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Renew(t.Context()); err != nil {
		t.Errorf("renew: %v", err)
	}
	again, err := open(dir, s.clock.now)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Renew(t.Context()); err != nil {
		t.Errorf("renew after a restart: %v", err)
	}
	opts.Dir, opts.ID, opts.Further = t.TempDir(), node("n2"), []string{s.address, dead}
	if _, err := Join(t.Context(), opts); !errors.Is(err, ErrTokenUsed) {
		t.Errorf("join with a used token: got %v, want ErrTokenUsed of the registrar that answered", err)
	}
	opts.Further = nil
	if _, err := Join(t.Context(), opts); err == nil || errors.Is(err, ErrTokenUsed) {
		t.Errorf("join where nobody answers: got %v, want why nobody does", err)
	}
}
