//go:build linux

package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	containerdlog "github.com/containerd/log"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cluster"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/network/overlay"
	"github.com/orchestrate-go/orchestrate/network/overlay/wireguard"
	"github.com/orchestrate-go/orchestrate/runtime/image"
	"github.com/orchestrate-go/orchestrate/store/etcd/embed"
)

// machine is one of a fleet.
type machine struct {
	Role    string // "control" or "agent"
	Name    string
	Dir     string
	Program string
	Shared  string // a folder of the test's, for what machines hand to each other

	Members map[string]netip.Addr // control planes
	Nodes   []string              // names, of agents

	Encrypt bool // what goes between nodes
	Stay    bool // an agent that has ended by itself waits for what it is told
	Join    *embed.Invitation

	LeaderTTL, NodeTTL, LostAfter, FenceGrace time.Duration
	Level                                     slog.Level
}

// Files of the shared folder.
const (
	fileCert, fileKey = "authority.pem", "authority-key.pem"
	fileToken         = "token." // and the name of who joins
	operator          = "operator"
)

// beMachine runs a machine until SIGTERM.
func beMachine(text string) error {
	var m machine
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := containerdlog.SetLevel("error"); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: m.Level}))
	if m.Role == "control" {
		return m.control(ctx, log)
	}
	return m.agent(ctx, log)
}

func (m *machine) shared(name string) string { return filepath.Join(m.Shared, name) }

func (m *machine) control(ctx context.Context, log *slog.Logger) error {
	cert, err1 := os.ReadFile(m.shared(fileCert))
	key, err2 := os.ReadFile(m.shared(fileKey))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	authority, err := identity.ParseAuthority(cert, key)
	if err != nil {
		return err
	}
	c, err := cluster.OpenControl(ctx, m.Dir, cluster.ControlOptions{
		Name: m.Name, Members: m.Members, Authority: authority, Join: m.Join, Logger: log,
		Fleet: fleetOptions(m.LeaderTTL, m.LostAfter),
	})
	if err != nil {
		return err
	}
	if m.Name == "a" {
		if err := handTokens(ctx, c, m.Shared, m.Nodes); err != nil {
			return errors.Join(err, c.Close())
		}
	}
	fmt.Println("ready")
	select {
	case <-ctx.Done():
	case <-c.Done():
	}
	return c.Close()
}

func fleetOptions(leaderTTL, lostAfter time.Duration) []orchestrate.Option {
	return []orchestrate.Option{
		orchestrate.WithLeaseTTL(leaderTTL), orchestrate.WithLostAfter(lostAfter), orchestrate.WithLossLimit("1000"),
	}
}

// handTokens makes the tokens that nobody has made yet.
func handTokens(ctx context.Context, c *cluster.Control, shared string, nodes []string) error {
	for _, name := range append([]string{operator}, nodes...) {
		if _, err := os.Stat(filepath.Join(shared, fileToken+name)); err == nil {
			continue
		}
		newToken := c.NewToken
		if name == operator {
			newToken = c.NewClientToken
		}
		token, err := newToken(ctx, name)
		if err == nil {
			err = handToken(shared, name, token)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// handToken lays a token where a machine waits for it.
func handToken(shared, name, token string) error {
	path := filepath.Join(shared, fileToken+name)
	if err := os.WriteFile(path+".new", []byte(token), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// waitFile reads a file that another machine makes.
func waitFile(ctx context.Context, path string) (string, error) {
	for {
		data, err := os.ReadFile(path)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return string(data), err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("wait for %s: %w", path, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (m *machine) agent(ctx context.Context, log *slog.Logger) error {
	destroy := make(chan os.Signal, 1)
	signal.Notify(destroy, syscall.SIGUSR1)
	token, err := waitFile(ctx, m.shared(fileToken+m.Name))
	if err != nil {
		return err
	}
	var control []netip.Addr
	for _, a := range m.Members {
		control = append(control, a)
	}
	var encryption overlay.Encryption
	if m.Encrypt {
		encryption = wireguard.New(wireguard.Options{})
	}
	a, err := cluster.OpenAgent(ctx, m.Dir, cluster.AgentOptions{
		Name: m.Name, Address: ownAddress(control[0]), Control: control, Token: token,
		LeaseTTL: m.NodeTTL, FenceGrace: m.FenceGrace, BindRoots: []string{m.Shared}, Logger: log,
		Encryption: encryption,
	})
	if err != nil {
		return err
	}
	if img, err := image.FromBinary(testImage, m.Program, image.Options{}); err != nil {
		return errors.Join(err, a.Close())
	} else if _, err := a.Load(ctx, img); err != nil {
		return errors.Join(err, a.Close())
	}
	fmt.Println("ready")
	ended := a.Done()
	for {
		select {
		case <-ctx.Done():
			return a.Close()
		case <-ended:
			if !m.Stay {
				return a.Close()
			}
			fmt.Println("ended:", a.Err())
			ended = nil
		case <-destroy:
			for range 2 { // the second finds nothing to do
				if err := a.Destroy(context.Background()); err != nil {
					return err
				}
			}
			fmt.Println("destroyed")
			return nil
		}
	}
}

// ownAddress is this machine's on the way to another: nothing is sent.
func ownAddress(to netip.Addr) netip.Addr {
	c, err := net.Dial("udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
}
