package identity

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Role is what a member is in the fleet.
type Role string

// The roles.
const (
	Control Role = "control" // a control plane: decides, and reaches nodes
	Node    Role = "node"    // a node's agent
)

// ID names a member. Names are unique within a role.
type ID struct {
	Role Role   `json:"role"`
	Name string `json:"name"` // 1 to 59 of [A-Za-z0-9._-]
}

// String is the form that certificates have as their common name: "node:n1".
func (i ID) String() string { return string(i.Role) + ":" + i.Name }

// maxName keeps a common name within the 64 characters of RFC 5280, appendix
// A.1 (ub-common-name), whatever the role.
const maxName = 64 - len("control:")

// Validate returns an error that names what is wrong, if anything is.
func (i ID) Validate() error {
	switch {
	case i.Role != Control && i.Role != Node:
		return fmt.Errorf("role %q is not known; use %q or %q", i.Role, Node, Control)
	case i.Name == "" || len(i.Name) > maxName:
		return fmt.Errorf("the name %q has %d characters; use 1 to %d", i.Name, len(i.Name), maxName)
	case strings.Trim(i.Name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") != "":
		return fmt.Errorf("the name %q has other characters than letters, digits, dots, dashes and underscores", i.Name)
	}
	return nil
}

// ParseID reads the form of [ID.String].
func ParseID(text string) (ID, error) {
	role, name, _ := strings.Cut(text, ":")
	id := ID{Role(role), name}
	if err := id.Validate(); err != nil {
		return ID{}, fmt.Errorf("identity %q: %w", text, err)
	}
	return id, nil
}

// Of returns whose certificate it is. It does not say that it is good.
func Of(cert *x509.Certificate) (ID, error) { return ParseID(cert.Subject.CommonName) }

// Peer returns who is at the other end of a connection that was made with a
// Member's configuration.
func Peer(state tls.ConnectionState) (ID, error) {
	if len(state.PeerCertificates) == 0 {
		return ID{}, ErrNoCertificate
	}
	return Of(state.PeerCertificates[0])
}

// Is allows members of a role.
func Is(role Role) func(ID) error {
	return func(id ID) error {
		if id.Role != role {
			return &DeniedError{ID: id, Reason: fmt.Sprintf("want a member with the role %q", role)}
		}
		return nil
	}
}

// Exactly allows one member.
func Exactly(want ID) func(ID) error {
	return func(id ID) error {
		if id != want {
			return &DeniedError{ID: id, Reason: fmt.Sprintf("want %v", want)}
		}
		return nil
	}
}

// Conditions that a caller can act on.
var (
	ErrToken         = errors.New("the token is not good")
	ErrTokenExpired  = errors.New("the token has expired")
	ErrTokenUsed     = errors.New("the token has been used")
	ErrNameInUse     = errors.New("the name is in use")
	ErrRevoked       = errors.New("the member has been revoked")
	ErrNoCertificate = errors.New("the peer shows no certificate")
	ErrAuthority     = errors.New("the peer's certificate is of another authority")
	ErrExpired       = errors.New("the certificate has expired")
	ErrUnknown       = errors.New("no such member")
)

// DeniedError is a member that is who it says, but not one that may.
type DeniedError struct {
	ID     ID
	Reason string
}

func (e *DeniedError) Error() string { return fmt.Sprintf("%v is refused: %s", e.ID, e.Reason) }

// keyHash identifies a public key.
func keyHash(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}
