package identity

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

// Options configure a [Registrar]. Store and Keyring are required.
type Options struct {
	Store   store.Store
	Keyring *Keyring
	// Granter opens and closes the way to what members need; nil: nothing is to
	// be opened.
	Granter Granter
	// Hosts are names and addresses by which joining machines reach the
	// registrar, for its own certificate; they trust it by the token alone.
	Hosts []string
	// TTL is how long a certificate is good, 24 h when 0. A member renews it
	// after half of that. A member that is revoked keeps the last one until then
	// where nothing but the certificate is asked for.
	TTL time.Duration
	// Logger; nil discards.
	Logger *slog.Logger

	now func() time.Time // time.Now when nil
}

// Granter gives members access to what they need, by the names in their
// certificates. Package store/etcd has one. Both methods are idempotent.
type Granter interface {
	Grant(ctx context.Context, id ID) error
	Revoke(ctx context.Context, id ID) error
}

// DefaultTTL is the default of [Options.TTL].
const DefaultTTL = 24 * time.Hour

// Registrar takes machines into the fleet. Any number can run over one store. It
// is safe for concurrent use.
type Registrar struct {
	opts Options
	log  *slog.Logger
}

// NewRegistrar returns a registrar; nothing listens until [Registrar.Serve].
func NewRegistrar(opts Options) (*Registrar, error) {
	switch {
	case opts.Store == nil:
		return nil, errors.New("identity: option Store is nil; give the fleet's")
	case opts.Keyring == nil:
		return nil, errors.New("identity: option Keyring is nil; make one with NewKeyring")
	case opts.TTL < 0 || opts.TTL > 0 && opts.TTL < time.Minute:
		return nil, fmt.Errorf("identity: option TTL is %v; want at least a minute", opts.TTL)
	}
	opts.TTL = cmp.Or(opts.TTL, DefaultTTL)
	if opts.now == nil {
		opts.now = time.Now
	}
	r := &Registrar{opts: opts, log: opts.Logger}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	return r, nil
}

// Keys of the store.
const (
	keyTokens  = "/identity/tokens/"  // ID of a token
	keyMembers = "/identity/members/" // ID of a member
)

// tokenRecord is what the store knows of a token: nothing that one could join
// with.
type tokenRecord struct {
	Secret  []byte    `json:"secret"` // SHA-256 of it
	Role    Role      `json:"role"`
	Name    string    `json:"name,omitempty"`
	Expires time.Time `json:"expires"`
	// UsedBy and Key say who joined with it, and with which key: the same machine
	// may ask again, as after a crash, and nobody else.
	UsedBy string `json:"usedBy,omitempty"`
	Key    string `json:"key,omitempty"`
}

// memberRecord is a member's.
type memberRecord struct {
	Key      string    `json:"key"`                // hash of its newest public key
	Previous string    `json:"previous,omitempty"` // and of the one before: the newest certificate may not have arrived
	Joined   time.Time `json:"joined"`
	Renewed  time.Time `json:"renewed"`
	Revoked  bool      `json:"revoked,omitempty"`
}

// TokenOptions say what a token is good for.
type TokenOptions struct {
	Role Role          // Node when empty
	Name string        // the only name that may join with it; any free one when empty
	TTL  time.Duration // an hour when 0
}

// NewToken makes a token that one machine can join with.
func (r *Registrar) NewToken(ctx context.Context, opts TokenOptions) (Token, error) {
	opts.Role, opts.TTL = cmp.Or(opts.Role, Node), cmp.Or(opts.TTL, time.Hour)
	if err := (ID{opts.Role, cmp.Or(opts.Name, "any")}).Validate(); err != nil {
		return Token{}, fmt.Errorf("make token: %w", err)
	}
	if opts.TTL < 0 {
		return Token{}, fmt.Errorf("make token: its time is %v; want more than 0", opts.TTL)
	}
	signer, _ := r.opts.Keyring.state()
	t, err := newToken(sha256.Sum256(signer.cert.Raw))
	if err != nil {
		return Token{}, fmt.Errorf("make token: %w", err)
	}
	hash := sha256.Sum256([]byte(t.secret))
	rec := tokenRecord{Secret: hash[:], Role: opts.Role, Name: opts.Name, Expires: r.opts.now().Add(opts.TTL).UTC()}
	if err := r.sweep(ctx); err != nil {
		return Token{}, fmt.Errorf("make token: %w", err)
	}
	key := keyTokens + t.id
	if err := r.commit(ctx, store.Txn{If: []store.Condition{store.Absent(key)}}, key, rec); err != nil {
		return Token{}, fmt.Errorf("make token: %w", err)
	}
	return t, nil
}

// forgetTokens is how long an expired token is told from one that never was.
const forgetTokens = 24 * time.Hour

// sweep forgets tokens that expired long ago.
func (r *Registrar) sweep(ctx context.Context) error {
	snapshot, err := r.opts.Store.List(ctx, keyTokens)
	if err != nil {
		return err
	}
	for _, item := range snapshot.Items {
		var rec tokenRecord
		if json.Unmarshal(item.Value, &rec) == nil && r.opts.now().Before(rec.Expires.Add(forgetTokens)) {
			continue
		}
		if _, err := r.opts.Store.Commit(ctx, store.Txn{Writes: []store.Write{store.Delete(item.Key)}}); err != nil {
			return err
		}
	}
	return nil
}

// CancelToken makes a token void that nobody has joined with yet.
func (r *Registrar) CancelToken(ctx context.Context, t Token) error {
	_, err := r.opts.Store.Commit(ctx, store.Txn{Writes: []store.Write{store.Delete(keyTokens + t.id)}})
	return err
}

// commit writes records under a transaction's conditions.
func (r *Registrar) commit(ctx context.Context, txn store.Txn, pairs ...any) error {
	for i := 0; i < len(pairs); i += 2 {
		data, err := json.Marshal(pairs[i+1])
		if err != nil {
			return err
		}
		txn.Writes = append(txn.Writes, store.Put(pairs[i].(string), data))
	}
	_, err := r.opts.Store.Commit(ctx, txn)
	return err
}

// read reads a record, and returns the condition that it stays so.
func read[T any](ctx context.Context, s store.Store, key string) (rec T, found bool, unchanged store.Condition, err error) {
	item, found, err := store.Get(ctx, s, key)
	if err != nil || !found {
		return rec, false, store.Absent(key), err
	}
	if err := json.Unmarshal(item.Value, &rec); err != nil {
		return rec, false, store.Condition{}, fmt.Errorf("read %s: %w", key, err)
	}
	return rec, true, item.Unchanged(), nil
}

// grant is a certificate, with those of its authority behind it, and the
// authorities that are trusted.
type grant struct {
	chain []*x509.Certificate
	roots []*x509.Certificate
}

// join takes a machine in that has a token. The same key may ask again.
func (r *Registrar) join(ctx context.Context, id ID, tokenID, secret string, csr *x509.CertificateRequest) (grant, error) {
	key := keyHash(csr.RawSubjectPublicKeyInfo)
	for {
		token, found, tokenUnchanged, err := read[tokenRecord](ctx, r.opts.Store, keyTokens+tokenID)
		if err != nil {
			return grant{}, err
		}
		hash := sha256.Sum256([]byte(secret))
		again := token.Key == key && token.UsedBy == id.String()
		switch {
		case !found || subtle.ConstantTimeCompare(hash[:], token.Secret) != 1:
			return grant{}, ErrToken
		case !r.opts.now().Before(token.Expires):
			return grant{}, ErrTokenExpired
		case token.Role != id.Role:
			return grant{}, fmt.Errorf("%w: it is for a member with the role %q", ErrToken, token.Role)
		case token.Name != "" && token.Name != id.Name:
			return grant{}, fmt.Errorf("%w: it is for the name %q", ErrToken, token.Name)
		case token.Key != "" && !again:
			return grant{}, ErrTokenUsed
		}
		member, known, memberUnchanged, err := read[memberRecord](ctx, r.opts.Store, keyMembers+id.String())
		switch {
		case err != nil:
			return grant{}, err
		case known && member.Revoked:
			return grant{}, fmt.Errorf("%v: %w; Forget it, and it can join anew", id, ErrRevoked)
		case known && !again:
			return grant{}, fmt.Errorf("%v: %w", id, ErrNameInUse)
		case again && !known:
			return grant{}, ErrTokenUsed // token and member are of one commit: it was forgotten since
		case known && member.Key != key:
			return grant{}, ErrTokenUsed // it has renewed since: whoever asks has seen an old join
		}
		if !known {
			now := r.opts.now().UTC()
			member = memberRecord{Key: key, Joined: now, Renewed: now}
		}
		token.UsedBy, token.Key = id.String(), key
		err = r.commit(ctx, store.Txn{If: []store.Condition{tokenUnchanged, memberUnchanged}},
			keyTokens+tokenID, token, keyMembers+id.String(), member)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return grant{}, err
		}
		return r.issue(ctx, id, csr)
	}
}

// issue grants access and signs.
func (r *Registrar) issue(ctx context.Context, id ID, csr *x509.CertificateRequest) (grant, error) {
	if r.opts.Granter != nil {
		if err := r.opts.Granter.Grant(ctx, id); err != nil {
			return grant{}, fmt.Errorf("give %v access: %w", id, err)
		}
	}
	signer, roots := r.opts.Keyring.state()
	cert, err := signer.issue(csr.PublicKey, id, nil, r.opts.TTL, r.opts.now())
	if err != nil {
		return grant{}, err
	}
	return grant{[]*x509.Certificate{cert, signer.cert}, roots}, nil
}

// renew gives a member a certificate for its next key. Shown is the certificate
// that it proved to have.
func (r *Registrar) renew(ctx context.Context, shown *x509.Certificate, csr *x509.CertificateRequest) (grant, error) {
	id, err := Of(shown)
	if err != nil {
		return grant{}, err
	}
	had, next := keyHash(shown.RawSubjectPublicKeyInfo), keyHash(csr.RawSubjectPublicKeyInfo)
	for {
		member, known, unchanged, err := read[memberRecord](ctx, r.opts.Store, keyMembers+id.String())
		switch {
		case err != nil:
			return grant{}, err
		case !known:
			return grant{}, fmt.Errorf("%v: %w", id, ErrUnknown)
		case member.Revoked:
			return grant{}, fmt.Errorf("%v: %w", id, ErrRevoked)
		case had != member.Key && had != member.Previous:
			// Somebody has renewed with this name's certificate since.
			return grant{}, fmt.Errorf("%v: %w", id, ErrNameInUse)
		}
		member.Key, member.Previous, member.Renewed = next, had, r.opts.now().UTC()
		err = r.commit(ctx, store.Txn{If: []store.Condition{unchanged}}, keyMembers+id.String(), member)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return grant{}, err
		}
		return r.issue(ctx, id, csr)
	}
}

// Revoke cuts a member off: what the Granter gave is taken away at once, and its
// certificate is not renewed. Its name stays taken until [Registrar.Forget]. A
// member that there never was is [ErrUnknown].
func (r *Registrar) Revoke(ctx context.Context, id ID) error {
	for {
		member, known, unchanged, err := read[memberRecord](ctx, r.opts.Store, keyMembers+id.String())
		if err == nil && !known {
			err = ErrUnknown
		}
		if err != nil {
			return fmt.Errorf("revoke %v: %w", id, err)
		}
		member.Revoked = true
		err = r.commit(ctx, store.Txn{If: []store.Condition{unchanged}}, keyMembers+id.String(), member)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err == nil && r.opts.Granter != nil {
			err = r.opts.Granter.Revoke(ctx, id)
		}
		if err != nil {
			return fmt.Errorf("revoke %v: %w", id, err)
		}
		return nil
	}
}

// Forget frees a member's name, after Revoke. One that is not revoked is
// [ErrNameInUse]; one that there is not is no error.
func (r *Registrar) Forget(ctx context.Context, id ID) error {
	member, known, unchanged, err := read[memberRecord](ctx, r.opts.Store, keyMembers+id.String())
	if err == nil && known && !member.Revoked {
		err = fmt.Errorf("%w; Revoke it first", ErrNameInUse)
	}
	if err == nil && known {
		_, err = r.opts.Store.Commit(ctx, store.Txn{If: []store.Condition{unchanged}, Writes: []store.Write{store.Delete(keyMembers + id.String())}})
	}
	if err != nil {
		return fmt.Errorf("forget %v: %w", id, err)
	}
	return nil
}

// Members returns who has joined, the revoked ones too.
func (r *Registrar) Members(ctx context.Context) ([]MemberInfo, error) {
	snapshot, err := r.opts.Store.List(ctx, keyMembers)
	if err != nil {
		return nil, err
	}
	var all []MemberInfo
	for _, item := range snapshot.Items {
		var rec memberRecord
		id, err := ParseID(item.Key[len(keyMembers):])
		if err == nil {
			err = json.Unmarshal(item.Value, &rec)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", item.Key, err)
		}
		all = append(all, MemberInfo{ID: id, Joined: rec.Joined, Renewed: rec.Renewed, Revoked: rec.Revoked})
	}
	return all, nil
}

// MemberInfo is what the registrar knows of a member. Renewed tells whether it
// can have heard of a change of the keyring.
type MemberInfo struct {
	ID      ID
	Joined  time.Time
	Renewed time.Time
	Revoked bool
}
