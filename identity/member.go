package identity

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Member is a machine of the fleet with its key and certificate. It is safe for
// concurrent use.
type Member struct {
	id      ID
	dir     string // where it is kept; empty: nowhere
	renewal func(context.Context, *x509.CertificateRequest) (grant, error)
	now     func() time.Time

	renewing sync.Mutex // one renewal at a time

	mu     sync.Mutex // guards what follows
	cert   *tls.Certificate
	roots  []*x509.Certificate
	mirror string // folder that gets them as files; empty: none
}

func newMember(id ID) *Member { return &Member{id: id, now: time.Now} }

// JoinOptions say how a machine joins. All but Further are required.
type JoinOptions struct {
	// Address is host:port of a registrar.
	Address string
	Token   Token
	ID      ID
	// Further are more registrars of the fleet, as Address is: the join and all
	// renewals ask one after the other until one answers.
	Further []string
	// Dir is a folder of the member's own, where its key and certificate are kept.
	Dir string

	now func() time.Time
}

// Join makes this machine a member. The key is made here, and stays here. A Join
// that was cut off is done again with the same token and Dir. The refusals are
// [ErrToken], [ErrTokenExpired], [ErrTokenUsed], [ErrNameInUse], [ErrRevoked],
// and [ErrAuthority] for a registrar that is not the token's.
func Join(ctx context.Context, opts JoinOptions) (*Member, error) {
	m, err := join(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("join as %v: %w", opts.ID, err)
	}
	return m, nil
}

func join(ctx context.Context, opts JoinOptions) (*Member, error) {
	if err := opts.ID.Validate(); err != nil {
		return nil, err
	}
	if opts.Dir == "" {
		return nil, errors.New("Dir is empty; give a folder of the member's own")
	}
	m := newMember(opts.ID)
	if opts.now != nil {
		m.now = opts.now
	}
	m.dir = opts.Dir
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, err
	}
	key, err := m.joinKey()
	if err != nil {
		return nil, err
	}
	csr, err := request(key, m.id)
	if err != nil {
		return nil, err
	}
	addresses := append([]string{opts.Address}, opts.Further...)
	g, err := ask(ctx, addresses, pathJoin, pinned(opts.Token.pin, m.now), joinBody{
		Token: opts.Token.id, Secret: opts.Token.secret, ID: m.id, CSR: csr,
	})
	if err != nil {
		return nil, err
	}
	if err := m.take(g, key); err != nil {
		return nil, err
	}
	m.renewal = m.ask(addresses)
	return m, errors.Join(m.save(addresses), os.Remove(filepath.Join(m.dir, fileJoinKey)))
}

// The files of a member's folder.
const (
	fileMember  = "member.json"
	fileJoinKey = "join.key" // until the join has succeeded
)

// savedMember is the file of a member.
type savedMember struct {
	ID      ID     `json:"id"`
	Address string `json:"address"` // of the registrar
	Key     string `json:"key"`
	Chain   string `json:"chain"`
	Roots   string `json:"roots"`

	Further []string `json:"further,omitempty"` // registrars
}

func (s *savedMember) addresses() []string { return append([]string{s.Address}, s.Further...) }

// joinKey returns the key to join with: that of a Join that was cut off, if
// there was one, since the token may be bound to it already.
func (m *Member) joinKey() (crypto.Signer, error) {
	path := filepath.Join(m.dir, fileJoinKey)
	data, err := os.ReadFile(path)
	if err == nil {
		if key, err := parseKey(data); err == nil {
			return key, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if data, err = marshalKey(key); err == nil {
		err = writeFile(path, data)
	}
	return key, err
}

// writeFile replaces a file in one step.
func writeFile(path string, data []byte) error {
	next := path + ".new"
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// Open opens the member whose folder dir is. A folder without one is
// [fs.ErrNotExist]; a certificate that has expired is [ErrExpired]: the machine
// has to join anew, once its name is free.
func Open(dir string) (*Member, error) {
	m, err := open(dir, time.Now)
	if err != nil {
		return nil, fmt.Errorf("open member in %q: %w", dir, err)
	}
	return m, nil
}

func open(dir string, now func() time.Time) (*Member, error) {
	data, err := os.ReadFile(filepath.Join(dir, fileMember))
	if err != nil {
		return nil, err
	}
	var saved savedMember
	if err := json.Unmarshal(data, &saved); err != nil {
		return nil, err
	}
	m := newMember(saved.ID)
	m.dir, m.now = dir, now
	key, errKey := parseKey([]byte(saved.Key))
	chain, errChain := parseCerts([]byte(saved.Chain))
	roots, errRoots := parseCerts([]byte(saved.Roots))
	if err := errors.Join(errKey, errChain, errRoots); err != nil {
		return nil, err
	}
	if err := m.take(grant{chain, roots}, key); err != nil {
		return nil, err
	}
	m.renewal = m.ask(saved.addresses())
	return m, nil
}

// save writes the member down, key and certificate in one step.
func (m *Member) save(addresses []string) error {
	if m.dir == "" {
		return nil
	}
	m.mu.Lock()
	cert, roots := m.cert, m.roots
	m.mu.Unlock()
	key, err := marshalKey(cert.PrivateKey.(crypto.Signer))
	if err != nil {
		return err
	}
	var chain []*x509.Certificate
	for _, der := range cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		chain = append(chain, c)
	}
	data, err := json.Marshal(savedMember{
		ID: m.id, Address: addresses[0], Further: addresses[1:], Key: string(key), Chain: string(marshalCerts(chain...)), Roots: string(marshalCerts(roots...)),
	})
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(m.dir, fileMember), data)
}

// request is a signed request for a certificate.
func request(key crypto.Signer, id ID) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id.String()}}, key)
}

// take makes a grant the member's own, if it is one for its key and name.
func (m *Member) take(g grant, key crypto.Signer) error {
	if len(g.chain) == 0 {
		return ErrNoCertificate
	}
	leaf := g.chain[0]
	id, err := Of(leaf)
	public, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	switch {
	case err != nil || id != m.id:
		return fmt.Errorf("the certificate is for %q: %w", leaf.Subject.CommonName, ErrAuthority)
	case !ok || !public.Equal(key.Public()):
		return fmt.Errorf("the certificate is for another key: %w", ErrAuthority)
	}
	if err := verify(g.chain, g.roots, x509.ExtKeyUsageClientAuth, m.now()); err != nil {
		return err
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, c := range g.chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cert, m.roots = cert, g.roots
	return m.writeMirror()
}

// The files that Mirror writes.
const (
	FileCert  = "cert.pem"
	FileKey   = "key.pem"
	FileRoots = "ca.pem"
)

// Mirror keeps certificate, key and authorities as files in a folder, now and
// after each renewal, for servers that take no other form: see FileCert, FileKey
// and FileRoots.
func (m *Member) Mirror(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mirror = dir
	return m.writeMirror()
}

// writeMirror writes the files. m.mu is held.
func (m *Member) writeMirror() error {
	if m.mirror == "" || m.cert == nil {
		return nil
	}
	key, err := marshalKey(m.cert.PrivateKey.(crypto.Signer))
	if err != nil {
		return err
	}
	var chain []*x509.Certificate
	for _, der := range m.cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		chain = append(chain, c)
	}
	return errors.Join(
		writeFile(filepath.Join(m.mirror, FileKey), key),
		writeFile(filepath.Join(m.mirror, FileCert), marshalCerts(chain...)),
		writeFile(filepath.Join(m.mirror, FileRoots), marshalCerts(m.roots...)),
	)
}

// ask returns the renewal at registrars.
func (m *Member) ask(addresses []string) func(context.Context, *x509.CertificateRequest) (grant, error) {
	return func(ctx context.Context, csr *x509.CertificateRequest) (grant, error) {
		return ask(ctx, addresses, pathRenew, m.Client(Is(Control)), renewBody{CSR: csr.Raw})
	}
}

// ID is who the member is.
func (m *Member) ID() ID { return m.id }

// Expires is when the present certificate ends.
func (m *Member) Expires() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cert == nil {
		return time.Time{}
	}
	return m.cert.Leaf.NotAfter
}

// Renew gets a certificate for a new key, and the authorities that are trusted
// now. Connections that were made go on.
func (m *Member) Renew(ctx context.Context) error {
	m.renewing.Lock()
	defer m.renewing.Unlock()
	if err := m.renew(ctx); err != nil {
		return fmt.Errorf("renew the certificate of %v: %w", m.id, err)
	}
	return nil
}

func (m *Member) renew(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := request(key, m.id)
	if err != nil {
		return err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return err
	}
	g, err := m.renewal(ctx, csr)
	if err != nil {
		return err
	}
	if err := m.take(g, key); err != nil {
		return err
	}
	if m.dir == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(m.dir, fileMember))
	var saved savedMember
	if err == nil {
		err = json.Unmarshal(data, &saved)
	}
	if err != nil {
		return err
	}
	return m.save(saved.addresses())
}

// Run renews the certificate after half of its time, and again with pauses
// until that succeeds, until ctx ends; then it returns nil. It returns
// [ErrRevoked], [ErrNameInUse] or [ErrUnknown] when the fleet does not know the
// member any more, and [ErrExpired] when the certificate ended without a renewal.
func (m *Member) Run(ctx context.Context) error {
	pause := time.Duration(0)
	for {
		m.mu.Lock()
		cert := m.cert
		m.mu.Unlock()
		wait := time.Duration(0)
		if cert != nil {
			begin := cert.Leaf.NotBefore.Add(backdate)
			wait = begin.Add(cert.Leaf.NotAfter.Sub(begin) / 2).Sub(m.now())
		}
		timer := time.NewTimer(max(wait, pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		err := m.Renew(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrRevoked), errors.Is(err, ErrNameInUse), errors.Is(err, ErrUnknown):
			return err
		case err != nil && !m.now().Before(m.Expires()):
			return fmt.Errorf("%w: %w", ErrExpired, err)
		case err != nil:
			pause = min(max(2*pause, time.Second), time.Minute)
		default:
			pause = 0
		}
	}
}

// current is the certificate to show.
func (m *Member) current() (*tls.Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cert == nil {
		return nil, ErrNoCertificate
	}
	return m.cert, nil
}

// check looks who a peer is, and asks allow about it.
func (m *Member) check(cs tls.ConnectionState, usage x509.ExtKeyUsage, allow func(ID) error) error {
	m.mu.Lock()
	roots := m.roots
	m.mu.Unlock()
	if err := verify(cs.PeerCertificates, roots, usage, m.now()); err != nil {
		return err
	}
	id, err := Of(cs.PeerCertificates[0])
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAuthority, err)
	}
	return allow(id)
}

// Client is the configuration of a connection to a member that allow allows. Who
// it is is known by its certificate's name; the host that it answers at does not
// matter. It can be used for any number of connections, and follows renewals.
func (m *Member) Client(allow func(ID) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return m.current()
		},
		// The check below takes the place of the library's: it knows the
		// authorities of this moment, and asks for a name and not for a host.
		InsecureSkipVerify: true, //nolint:gosec // see VerifyConnection
		VerifyConnection: func(cs tls.ConnectionState) error {
			return m.check(cs, x509.ExtKeyUsageServerAuth, allow)
		},
	}
}

// Server is the configuration of a server for members that allow allows.
func (m *Member) Server(allow func(ID) error) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return m.current() },
		ClientAuth:     tls.RequireAnyClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return m.check(cs, x509.ExtKeyUsageClientAuth, allow)
		},
		// A ticket would outlive what its certificate is good for.
		SessionTicketsDisabled: true,
	}
}

// verify says whether a chain is good, and of one of the roots.
func verify(chain, roots []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) error {
	if len(chain) == 0 {
		return ErrNoCertificate
	}
	pool := x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("%w: %w", ErrExpired, err)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrAuthority, err)
	}
	return nil
}

// pinned is the configuration of a machine that knows nothing but a token: the
// peer must show a control plane's certificate, and behind it the authority whose
// hash the token has.
func pinned(pin [32]byte, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // see VerifyConnection
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, c := range cs.PeerCertificates {
				if sha256.Sum256(c.Raw) != pin {
					continue
				}
				if err := verify(cs.PeerCertificates, []*x509.Certificate{c}, x509.ExtKeyUsageServerAuth, now()); err != nil {
					return err
				}
				id, err := Of(cs.PeerCertificates[0])
				return cmp.Or(err, Is(Control)(id))
			}
			return fmt.Errorf("%w than the token's", ErrAuthority)
		},
	}
}
