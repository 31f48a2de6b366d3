//go:build linux

package containerd

import (
	"os"
	"path/filepath"
	"strconv"

	"github.com/orchestrate-go/orchestrate/runtime"
)

func (r *Runtime) logDir(id string) string { return filepath.Join(r.root, "logs", id) }

// makeLogs makes the files that the shim writes a run's output to.
func (r *Runtime) makeLogs(spec runtime.Spec, rec *record) (stdout, stderr string, err error) {
	dir := r.logDir(spec.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	rec.Run = 1
	name := filepath.Join(dir, strconv.Itoa(rec.Run))
	stdout, stderr = name+".out", name+".err"
	for _, path := range []string{stdout, stderr} {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return "", "", err
		}
		f.Close()
	}
	return stdout, stderr, nil
}
