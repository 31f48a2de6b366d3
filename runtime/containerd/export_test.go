//go:build linux

package containerd

import (
	"os/exec"
	"path/filepath"
	"strconv"
)

// StateDir is the state folder that a root has by default.
func StateDir(root string) string { return filepath.Join("/run/orchestrate", shortHash(root)) }

// MakeFolders is makeFolders.
var MakeFolders = makeFolders

// ViaDaemon makes a Client never speak to a shim.
func ViaDaemon(opts ConnectOptions) ConnectOptions {
	opts.viaDaemon = true
	return opts
}

// Settle waits for the shims that are being started ahead.
func Settle(r *Runtime) { r.shims.wait() }

// CutLogs has the guard of logs look at a folder once.
func CutLogs(dir string, limit int64) ([]byte, error) {
	cmd := exec.Command("/bin/sh", "-c", cutScript, "", "", "", strconv.FormatInt(limit, 10), strconv.Itoa(punchAlign))
	cmd.Dir = dir
	return cmd.CombinedOutput()
}
