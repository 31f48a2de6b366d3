package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
)

// Token lets one machine join. It is a secret, for a short time: hand it over as
// one.
type Token struct {
	id     string   // names its record
	secret string   // proves that it was given
	pin    [32]byte // SHA-256 of the authority's certificate
}

// tokenPrefix makes a token known for what it is, also by those who scan for
// secrets.
const tokenPrefix = "orchestrate1"

var tokenText = base32.StdEncoding.WithPadding(base32.NoPadding)

const (
	tokenID     = 10 // bytes
	tokenSecret = 20 // 160 bits: not to be guessed
)

func newToken(pin [32]byte) (Token, error) {
	random := make([]byte, tokenID+tokenSecret)
	if _, err := rand.Read(random); err != nil {
		return Token{}, err
	}
	return Token{id: encode(random[:tokenID]), secret: encode(random[tokenID:]), pin: pin}, nil
}

func encode(data []byte) string { return strings.ToLower(tokenText.EncodeToString(data)) }

func decode(text string, size int) ([]byte, error) {
	data, err := tokenText.DecodeString(strings.ToUpper(text))
	if err != nil || len(data) != size || encode(data) != text {
		return nil, fmt.Errorf("want %d bytes as base32 in lower case", size)
	}
	return data, nil
}

// Text is the token in one word.
func (t Token) Text() string {
	return strings.Join([]string{tokenPrefix, t.id, t.secret, encode(t.pin[:])}, ".")
}

// String names the token without its secret, so that it can be logged.
func (t Token) String() string { return tokenPrefix + "." + t.id }

// ParseToken reads what [Token.Text] wrote. The error does not repeat it.
func ParseToken(text string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(text), ".")
	if len(parts) != 4 || parts[0] != tokenPrefix {
		return Token{}, fmt.Errorf("%w: want %s and three words, with dots between", ErrToken, tokenPrefix)
	}
	_, errID := decode(parts[1], tokenID)
	_, errSecret := decode(parts[2], tokenSecret)
	pin, errPin := decode(parts[3], sha256.Size)
	if err := errors.Join(errID, errSecret, errPin); err != nil {
		return Token{}, fmt.Errorf("%w: it is cut off or changed: %w", ErrToken, err)
	}
	return Token{id: parts[1], secret: parts[2], pin: [32]byte(pin)}, nil
}
