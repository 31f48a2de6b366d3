//go:build linux

package overlay

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Encryption makes interfaces that encrypt what is routed over them, in the
// manner of WireGuard. Package wireguard has one.
type Encryption interface {
	// Open makes the interface of a name in the network namespace of a path, the
	// program's when empty, up and with an MTU, or takes over the one that an
	// earlier process left there.
	Open(name, namespace string, mtu int) (Tunnel, error)
}

// Tunnel is such an interface. Its methods are safe for concurrent use.
type Tunnel interface {
	// Configure makes the tunnel have these peers and no others. What goes on
	// with a peer that stays is not disturbed by what changes about others; a
	// new private key ends all sessions.
	Configure(TunnelConfig) error
	// Peers says how it goes with each peer.
	Peers() (map[Key]TunnelState, error)
	// Close lets go of the interface, which stays. One that the process itself
	// encrypts for drops everything until it is opened again.
	Close() error
}

// TunnelConfig is all that a tunnel needs to know.
type TunnelConfig struct {
	Private Key          `json:"private"`
	Port    uint16       `json:"port"` // UDP, of this end
	Peers   []TunnelPeer `json:"peers"`
}

// TunnelPeer is the other end of a tunnel.
type TunnelPeer struct {
	Public   Key            `json:"public"`
	Endpoint netip.AddrPort `json:"endpoint"`
	// Allowed are the addresses that are sent to it, and taken from it. No two
	// peers of a tunnel share any.
	Allowed []netip.Prefix `json:"allowed"`
	// Keepalive is how often a sign of life is sent, in whole seconds; never
	// when 0. The first is sent at once.
	Keepalive time.Duration `json:"keepalive,omitempty"`
}

// TunnelState is how it goes with a peer.
type TunnelState struct {
	// Handshake is when the last one with these keys was completed: zero if
	// none was.
	Handshake time.Time
	// Received counts bytes that the peer proved to have sent.
	Received uint64
}

// Key is a key of X25519 (RFC 7748).
type Key [32]byte

// MakeKey returns a private key.
func MakeKey() (Key, error) {
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, err
	}
	k := Key(private.Bytes())
	k[0], k[31] = k[0]&^7, k[31]&127|64 // as every implementation uses it, RFC 7748, 5
	return k, nil
}

// Public returns the public key of a private one.
func (k Key) Public() Key {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	return Key(private.PublicKey().Bytes())
}

// String returns a few letters of the key, which tell keys apart and give none
// away.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:3]) + "…" }

// MarshalText writes a key in base64, as WireGuard's tools do.
func (k Key) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, k[:]), nil
}

// UnmarshalText reads it.
func (k *Key) UnmarshalText(text []byte) error {
	b, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	if len(b) != len(k) {
		return errors.New("key: has to be 32 bytes in base64")
	}
	*k = Key(b)
	return nil
}

// What WireGuard puts around a packet: an IPv4 or IPv6 header, one of UDP, its
// own and a tag.
const sealed4, sealed6 = 20 + 8 + 16 + 16, 40 + 8 + 16 + 16
