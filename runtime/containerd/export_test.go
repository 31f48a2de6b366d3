//go:build linux

package containerd

import "path/filepath"

// StateDir is the state folder that a root has by default.
func StateDir(root string) string { return filepath.Join("/run/orchestrate", shortHash(root)) }

// ViaDaemon makes a Client never speak to a shim.
func ViaDaemon(opts ConnectOptions) ConnectOptions {
	opts.viaDaemon = true
	return opts
}

// Settle waits for the shims that are being started ahead.
func Settle(r *Runtime) { r.shims.wait() }
