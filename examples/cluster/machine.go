//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cluster"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

// The times that the fleet is held to.
const (
	leaderTTL = 3 * time.Second
	nodeTTL   = 3 * time.Second
	lostAfter = 3 * time.Second
)

// config is what a machine is told at its start.
type config struct {
	Name    string
	Address netip.Addr
	Dir     string // its own
	Shared  string // where the authority and tokens are handed over
	Members map[string]netip.Addr
	Nodes   []string
}

// machine is a control plane or a node until ctx ends.
func machine(ctx context.Context, role, text string) error {
	var c config
	if err := errors.Join(json.Unmarshal([]byte(text), &c), quiet()); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if role == "control" {
		return c.control(ctx, log)
	}
	return c.agent(ctx, log)
}

func (c *config) control(ctx context.Context, log *slog.Logger) error {
	cert, err1 := os.ReadFile(filepath.Join(c.Shared, "authority.pem"))
	key, err2 := os.ReadFile(filepath.Join(c.Shared, "authority-key.pem"))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	authority, err := identity.ParseAuthority(cert, key)
	if err != nil {
		return err
	}
	control, err := cluster.OpenControl(ctx, c.Dir, cluster.ControlOptions{
		Name: c.Name, Members: c.Members, Authority: authority, Logger: log,
		Fleet: []orchestrate.Option{orchestrate.WithLeaseTTL(leaderTTL), orchestrate.WithLostAfter(lostAfter)},
	})
	if err != nil {
		return err
	}
	if c.Name == "a" { // one of them is enough to let the others in
		err = c.handTokens(ctx, control)
	}
	if err == nil {
		fmt.Println("ready")
		select {
		case <-ctx.Done():
		case <-control.Done():
		}
	}
	return errors.Join(err, control.Close())
}

// handTokens makes a token for everybody who is to join, the first time.
func (c *config) handTokens(ctx context.Context, control *cluster.Control) error {
	for _, name := range append(slices.Clone(c.Nodes), operator) {
		path := filepath.Join(c.Shared, name)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		newToken := control.NewToken
		if name == operator {
			newToken = control.NewClientToken
		}
		text, err := newToken(ctx, name)
		if err == nil {
			err = os.WriteFile(path+".new", []byte(text), 0o600)
		}
		if err == nil {
			err = os.Rename(path+".new", path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *config) agent(ctx context.Context, log *slog.Logger) error {
	token, err := handed(ctx, filepath.Join(c.Shared, c.Name))
	if err != nil {
		return err
	}
	agent, err := cluster.OpenAgent(ctx, c.Dir, cluster.AgentOptions{
		Name: c.Name, Address: c.Address, Control: slices.Collect(maps.Values(c.Members)), Token: token,
		LeaseTTL: nodeTTL, Logger: log,
	})
	if err != nil {
		return err
	}
	// The image is this program. In a fleet of real machines it comes from a
	// registry.
	img, err := webImage()
	if err == nil {
		_, err = agent.Load(ctx, img)
	}
	if err == nil {
		fmt.Println("ready")
		select {
		case <-ctx.Done():
		case <-agent.Done():
		}
	}
	return errors.Join(err, agent.Close())
}

func webImage() (*image.Image, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return image.FromBinary("web:1", self, image.Options{Command: []string{"serve"}})
}

// handed waits for a file that a control plane writes.
func handed(ctx context.Context, path string) (string, error) {
	for {
		data, err := os.ReadFile(path)
		if !errors.Is(err, os.ErrNotExist) {
			return string(data), err
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
