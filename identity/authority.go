package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"sync"
	"time"
)

// Authority signs the certificates of a fleet's members.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// backdate is how far the clock of who reads a certificate may be behind.
const backdate = 5 * time.Minute

// NewAuthority makes one with a key of its own (ECDSA, P-256). Name is for
// people, such as the fleet's.
func NewAuthority(name string, validity time.Duration) (*Authority, error) {
	return newAuthority(name, validity, time.Now())
}

func newAuthority(name string, validity time.Duration, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(validity),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make authority %q: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	return &Authority{cert, key}, err
}

// serialNumber draws 127 bits (RFC 5280, section 4.1.2.2: at most 20 octets).
func serialNumber() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// ParseAuthority reads what [Authority.Marshal] wrote.
func ParseAuthority(certPEM, keyPEM []byte) (*Authority, error) {
	certs, err := parseCerts(certPEM)
	if err != nil || len(certs) != 1 || !certs[0].IsCA {
		return nil, errors.Join(errors.New("want the PEM of one certificate of an authority"), err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	if public, ok := certs[0].PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(key.Public()) {
		return nil, errors.New("the key is not that of the certificate")
	}
	return &Authority{certs[0], key}, nil
}

// Marshal returns certificate and private key as PEM. Whoever has the key can
// make members: keep it where only control planes read it.
func (a *Authority) Marshal() (certPEM, keyPEM []byte, err error) {
	keyPEM, err = marshalKey(a.key)
	return marshalCerts(a.cert), keyPEM, err
}

// Certificate is the authority's own.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// issue signs a member's key.
func (a *Authority) issue(public crypto.PublicKey, id ID, hosts []string, ttl time.Duration, now time.Time) (*x509.Certificate, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: id.String()},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(ttl),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %v: %w", id, err)
	}
	return x509.ParseCertificate(der)
}

// Keyring is the authorities of a fleet. To change from one to another without
// an end of any connection: Trust the new one, wait until every member has
// renewed its certificate and so knows it, SignWith it, wait again, and Distrust
// the old one. It is safe for concurrent use.
type Keyring struct {
	mu     sync.Mutex // guards what follows
	signer *Authority
	roots  []*x509.Certificate
}

// NewKeyring returns a keyring that signs with a.
func NewKeyring(a *Authority) *Keyring {
	return &Keyring{signer: a, roots: []*x509.Certificate{a.cert}}
}

// Trust makes members take certificates of a further authority.
func (k *Keyring) Trust(cert *x509.Certificate) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !slices.ContainsFunc(k.roots, cert.Equal) {
		k.roots = append(slices.Clone(k.roots), cert)
	}
}

// SignWith signs with another authority from now on, which is trusted too.
func (k *Keyring) SignWith(a *Authority) {
	k.Trust(a.cert)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.signer = a
}

// Distrust refuses certificates of an authority. The one that signs cannot be
// distrusted.
func (k *Keyring) Distrust(cert *x509.Certificate) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.signer.cert.Equal(cert) {
		return errors.New("this authority signs; call SignWith another first")
	}
	k.roots = slices.DeleteFunc(slices.Clone(k.roots), cert.Equal)
	return nil
}

// state returns who signs and who is trusted.
func (k *Keyring) state() (*Authority, []*x509.Certificate) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.signer, k.roots
}

// Member makes a member of the control plane's own process, whose certificate
// is also good for hosts: names and addresses by which it is reached. It needs no
// token and no registrar.
func (k *Keyring) Member(id ID, hosts []string, ttl time.Duration) (*Member, error) {
	if err := id.Validate(); err != nil {
		return nil, err
	}
	m := newMember(id)
	m.renewal = func(_ context.Context, csr *x509.CertificateRequest) (grant, error) {
		signer, roots := k.state()
		cert, err := signer.issue(csr.PublicKey, id, hosts, ttl, m.now())
		return grant{[]*x509.Certificate{cert, signer.cert}, roots}, err
	}
	return m, nil
}

func marshalCerts(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func parseCerts(data []byte) (certs []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return certs, nil
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read certificate: %w", err)
		}
		certs = append(certs, cert)
	}
}

func marshalKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("want the PEM of a private key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	return signer, nil
}
