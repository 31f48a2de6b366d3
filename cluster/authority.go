//go:build linux

package cluster

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/orchestrate-go/orchestrate/identity"
)

// The files of the authority.
const (
	fileAuthority    = "authority.pem"
	fileAuthorityKey = "authority-key.pem"
)

// keepAuthority returns the authority that is kept in a folder, or keeps the one
// that is given, or one of its own where there is none and it may.
func keepAuthority(dir string, given *identity.Authority, own bool) (*identity.Authority, error) {
	cert, err := os.ReadFile(filepath.Join(dir, fileAuthority))
	switch {
	case err == nil:
		key, err := os.ReadFile(filepath.Join(dir, fileAuthorityKey))
		if err != nil {
			return nil, err
		}
		kept, err := identity.ParseAuthority(cert, key)
		if err == nil && given != nil && !kept.Certificate().Equal(given.Certificate()) {
			err = &OptionError{"Authority", "is not the one that this control plane began with; see Keyring to change it"}
		}
		return kept, err
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case given == nil && !own:
		return nil, &OptionError{"Authority", "is not set; a fleet that begins with several control planes needs the same on each: make one with identity.NewAuthority"}
	case given == nil:
		if given, err = identity.NewAuthority("orchestrate", authorityTTL); err != nil {
			return nil, err
		}
	}
	certPEM, keyPEM, err := given.Marshal()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// The certificate last: it says that the key is there.
	for _, file := range []struct {
		name string
		data []byte
	}{{fileAuthorityKey, keyPEM}, {fileAuthority, certPEM}} {
		path := filepath.Join(dir, file.name)
		if err := os.WriteFile(path+".new", file.data, 0o600); err != nil {
			return nil, err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return nil, err
		}
	}
	return given, nil
}

// authorityTTL is for how long an authority of the fleet's own is good.
const authorityTTL = 10 * 365 * 24 * time.Hour
