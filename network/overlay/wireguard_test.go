//go:build linux

package overlay_test

import (
	"github.com/orchestrate-go/orchestrate/network/overlay"
	"github.com/orchestrate-go/orchestrate/network/overlay/wireguard"
)

// The tests of package overlay encrypt by package wireguard, which they cannot
// import.
var _ = overlay.EncryptTests(func() overlay.Encryption { return wireguard.New(wireguard.Options{InProcess: true}) })
