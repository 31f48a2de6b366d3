//go:build linux

package wireguard

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network/overlay"
)

// Options are good as they are.
type Options struct {
	// InProcess leaves the kernel's WireGuard aside where it is there.
	InProcess bool
	// Logger gets what wireguard-go says; nil means silence.
	Logger *slog.Logger
}

// New returns the encryption for [overlay.Options].
func New(options Options) overlay.Encryption {
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	return &encryption{options}
}

type encryption struct{ Options }

// Open implements [overlay.Encryption].
func (e *encryption) Open(name, namespace string, mtu int) (t overlay.Tunnel, err error) {
	errInside := inside(namespace, func() error {
		if !e.InProcess {
			t, err = openKernel(name)
		}
		if e.InProcess || errors.Is(err, unix.EOPNOTSUPP) {
			t, err = openProcess(name, namespace, mtu, e.Logger)
		}
		if err != nil {
			return err
		}
		return bringUp(name, mtu)
	})
	if errInside != nil {
		if err == nil && t != nil {
			errInside = errors.Join(errInside, t.Close())
		}
		return nil, fmt.Errorf("wireguard: %w", errInside)
	}
	return t, nil
}

// bringUp readies an interface for packets.
func bringUp(name string, mtu int) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("mtu %d: %w", mtu, err)
		}
	}
	const addrGenNone = 1 // IN6_ADDR_GEN_MODE_NONE of linux/if_link.h
	if err := netlink.LinkSetIP6AddrGenMode(link, addrGenNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("no address of the kernel's choice: %w", err)
	}
	return netlink.LinkSetUp(link)
}

// removeOther removes an interface of the name that is of another kind.
func removeOther(name, kind string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil || link.Type() == kind {
		return err
	}
	return netlink.LinkDel(link)
}

// inside runs f on a thread that is in the network namespace of a path, or where
// it is already when the path is empty. What f opens stays in the namespace. The
// thread ends with f.
func inside(namespace string, f func() error) error {
	if namespace == "" {
		return f()
	}
	ns, err := os.Open(namespace)
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // read-only
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and not unlocked
		err := netns.Set(netns.NsHandle(ns.Fd()))
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
