//go:build linux

package wireguard

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/orchestrate-go/orchestrate/network/overlay"
)

// process is a tunnel that this process encrypts for.
type process struct {
	device    *device.Device
	namespace string

	mu   sync.Mutex // guards have
	have overlay.TunnelConfig
}

// openProcess opens a TUN interface that stays when the process ends: its routes
// then lead nowhere, and not elsewhere. The calling thread is in the namespace.
func openProcess(name, namespace string, mtu int, log *slog.Logger) (overlay.Tunnel, error) {
	if err := removeOther(name, "tuntap"); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	t, err := openTUN(fd, name)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("TUN interface %s: %w", name, err)
	}
	if err := bringUp(name, mtu); err != nil {
		_ = t.Close()
		return nil, err
	}
	say := func(format string, args ...any) { log.Debug(fmt.Sprintf(format, args...), "tunnel", name) }
	d := device.NewDevice(t, conn.NewStdNetBind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: say})
	return &process{device: d, namespace: namespace}, nil
}

func openTUN(fd int, name string) (tun.Device, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, err
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return nil, err
	}
	// Nobody but this package sets the interface up or down, so there is nothing
	// to be watched.
	t, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	return t, err
}

// Configure implements [overlay.Tunnel] by WireGuard's configuration protocol.
func (p *process) Configure(want overlay.TunnelConfig) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	// Sockets are opened by whoever gives the port.
	err := inside(p.namespace, func() error {
		if err := p.device.IpcSet(protocol(want, between(p.have, want))); err != nil {
			return err
		}
		return p.device.Up()
	})
	if err != nil {
		return fmt.Errorf("configure tunnel: %w", err)
	}
	p.have, p.have.Peers = want, slices.Clone(want.Peers)
	return nil
}

// protocol writes changes as WireGuard's configuration protocol has them, see
// wireguard.com/xplatform.
func protocol(want overlay.TunnelConfig, c changes) string {
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s=%v\n", key, value) }
	if c.anew {
		line("private_key", hex.EncodeToString(want.Private[:]))
	}
	if c.port {
		line("listen_port", want.Port)
	}
	if c.anew {
		line("replace_peers", true)
	}
	for _, n := range c.peers {
		line("public_key", hex.EncodeToString(n.public[:]))
		if n.remove {
			line("remove", true)
			continue
		}
		if n.endpoint.IsValid() {
			line("endpoint", n.endpoint)
		}
		if n.keepalive != nil {
			line("persistent_keepalive_interval", int(*n.keepalive/time.Second))
		}
		for _, a := range n.allow {
			line("allowed_ip", a)
		}
		for _, a := range n.disallow {
			line("allowed_ip", "-"+a.String())
		}
	}
	return b.String()
}

// Peers implements [overlay.Tunnel].
func (p *process) Peers() (map[overlay.Key]overlay.TunnelState, error) {
	r, w := io.Pipe()
	go func() { w.CloseWithError(p.device.IpcGetOperation(w)) }()
	defer r.Close() //nolint:errcheck // of a pipe: nil
	peers := map[overlay.Key]overlay.TunnelState{}
	var key overlay.Key
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		state := peers[key]
		n, _ := strconv.ParseInt(value, 10, 64)
		switch name {
		case "public_key":
			if _, err := hex.Decode(key[:], []byte(value)); err != nil {
				return nil, fmt.Errorf("look at tunnel: key %q: %w", value, err)
			}
			peers[key] = overlay.TunnelState{}
			continue
		case "last_handshake_time_sec":
			if n == 0 {
				continue
			}
			state.Handshake = time.Unix(n, 0)
		case "rx_bytes":
			state.Received = uint64(n)
		default:
			continue
		}
		peers[key] = state
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("look at tunnel: %w", err)
	}
	return peers, nil
}

// Close implements [overlay.Tunnel].
func (p *process) Close() error {
	p.device.Close()
	return nil
}
