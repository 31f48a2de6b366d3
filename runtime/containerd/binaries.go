//go:build linux

package containerd

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// MissingBinaryError says which program is not installed and how to get it.
type MissingBinaryError struct {
	Name    string   // such as "runc"
	Looked  []string // where it was looked for
	Install string   // the command that installs it
}

func (e *MissingBinaryError) Error() string {
	return fmt.Sprintf("%s is not installed (looked in %q and PATH); get it with: %s", e.Name, e.Looked, e.Install)
}

type binaries struct{ shim, runc string }

func findBinaries(dir string) (binaries, error) {
	var b binaries
	for _, want := range []struct {
		path          *string
		name, install string
	}{
		{&b.shim, "containerd-shim-runc-v2", "CGO_ENABLED=0 go install github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@v2.4.2"},
		// Without the tag runc knows no seccomp and refuses the profile.
		{&b.runc, "runc", "CGO_ENABLED=1 go install -tags seccomp github.com/opencontainers/runc@v1.5.2 (needs gcc and libseccomp-dev)"},
	} {
		var looked []string
		for _, d := range []string{dir, os.Getenv("ORCHESTRATE_BIN")} {
			if d == "" || *want.path != "" {
				continue
			}
			looked = append(looked, d)
			if p, err := exec.LookPath(filepath.Join(d, want.name)); err == nil {
				*want.path = p
			}
		}
		if *want.path == "" {
			p, err := exec.LookPath(want.name)
			if err != nil {
				return b, &MissingBinaryError{Name: want.name, Looked: looked, Install: want.install}
			}
			*want.path = p
		}
		// The shim works in another folder.
		abs, err := filepath.Abs(*want.path)
		if err != nil {
			return b, err
		}
		*want.path = abs
	}
	return b, nil
}

// maxStateLen leaves room for "/s/", the 64 digits that a shim names its
// socket with, and the final zero in the 108 bytes of sockaddr_un.
const maxStateLen = 37

// shortHash names a root in folders and cgroups.
func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}
