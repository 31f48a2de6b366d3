//go:build linux

package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
)

// state is what the driver writes down, under Options.Dir:
//
//	lock                   held while a Driver is open
//	networks/NAME.json     the network as it was last ensured
//	uplink-NAME            an interface of the node that was changed
//	addresses/NAME/ADDR    who has the address: one file for each, made
//	                       with O_EXCL, holding the attachment
//
// Nothing is synced to the disk. A file that a killed process wrote is there,
// because the kernel has it; one that a power failure loses was about
// interfaces and namespaces that are gone as well, so nobody holds the
// address.
type state struct {
	dir  string
	lock *os.File
}

func openState(dir string) (*state, error) {
	for _, sub := range []string{"", "networks", "addresses"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("state folder: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close() // nothing was written
		return nil, fmt.Errorf("state folder %s: %w: another driver has it open", dir, err)
	}
	return &state{dir: dir, lock: lock}, nil
}

func (s *state) close() error { return s.lock.Close() }

const uplinkPrefix = "uplink-"

// noteUplink writes down that an interface is about to be changed, and whether
// its route_localnet is. What is written first stays.
func (s *state) noteUplink(name string, localnet bool) error {
	file, err := os.OpenFile(filepath.Join(s.dir, uplinkPrefix+name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil && localnet {
		_, err = file.WriteString("route_localnet")
	}
	return errors.Join(err, file.Close())
}

// uplinks returns the interfaces that were changed, and whether their
// route_localnet was.
func (s *state) uplinks() (map[string]bool, error) {
	paths, err := filepath.Glob(filepath.Join(s.dir, uplinkPrefix+"*"))
	if err != nil {
		return nil, err
	}
	changed := map[string]bool{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		changed[strings.TrimPrefix(filepath.Base(path), uplinkPrefix)] = len(text) > 0
	}
	return changed, nil
}

func (s *state) forgetUplink(name string) error {
	return ignoreMissing(os.Remove(filepath.Join(s.dir, uplinkPrefix+name)))
}

// fileName makes one path element of any network's name.
func fileName(name string) string { return "n-" + url.PathEscape(name) }

func (s *state) networkPath(name string) string {
	return filepath.Join(s.dir, "networks", fileName(name)+".json")
}

func (s *state) addressDir(name string) string {
	return filepath.Join(s.dir, "addresses", fileName(name))
}

// saveNetwork replaces the file in one step.
func (s *state) saveNetwork(n network.Network) error {
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.addressDir(n.Name), 0o700); err != nil {
		return err
	}
	path := s.networkPath(n.Name)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (s *state) removeNetwork(name string) error {
	return errors.Join(os.RemoveAll(s.addressDir(name)), ignoreMissing(os.Remove(s.networkPath(name))))
}

// loadNetworks reads every network, leaving out files that a kill left half
// written under another name.
func (s *state) loadNetworks() ([]network.Network, error) {
	paths, err := filepath.Glob(filepath.Join(s.dir, "networks", "*.json"))
	if err != nil {
		return nil, err
	}
	var all []network.Network
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var n network.Network
		if err := json.Unmarshal(data, &n); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if err := n.Validate(); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, n)
	}
	return all, nil
}

// holding is the content of an address file.
type holding struct {
	network.Attachment
	address  netip.Addr
	modified int64 // nanoseconds, for the order of handing out
}

// hold writes down who has an address. It fails with fs.ErrExist where
// somebody has it.
func (s *state) hold(a network.Attachment, addr netip.Addr) (err error) {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	path := filepath.Join(s.addressDir(a.Network), addr.String())
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err = file.Write(data); err != nil {
		return errors.Join(err, file.Close(), os.Remove(path))
	}
	return file.Close()
}

// rehold overwrites what is written about an address the attachment has. The
// new content takes the old one's place in one step.
func (s *state) rehold(a network.Attachment, addr netip.Addr) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	path := filepath.Join(s.addressDir(a.Network), addr.String())
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (s *state) release(networkName string, addr netip.Addr) error {
	return ignoreMissing(os.Remove(filepath.Join(s.addressDir(networkName), addr.String())))
}

// holdings reads who has the addresses of a network. A file that was made but
// not filled when a process was killed is removed: the interface is made
// after the file is, so nobody has that address.
func (s *state) holdings(name string) ([]holding, error) {
	entries, err := os.ReadDir(s.addressDir(name))
	if err != nil {
		return nil, ignoreMissing(err)
	}
	var all []holding
	for _, e := range entries {
		path := filepath.Join(s.addressDir(name), e.Name())
		h, err := readHolding(path)
		if err != nil || h.Network != name {
			if err := ignoreMissing(os.Remove(path)); err != nil {
				return nil, err
			}
			continue
		}
		all = append(all, h)
	}
	return all, nil
}

func readHolding(path string) (holding, error) {
	var h holding
	addr, err := netip.ParseAddr(filepath.Base(path))
	if err != nil {
		return h, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return h, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return h, err
	}
	h.address, h.modified = addr, info.ModTime().UnixNano()
	if err := json.Unmarshal(data, &h.Attachment); err != nil {
		return h, err
	}
	return h, h.Validate()
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
