//go:build linux

package containerd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// Logs are bounded also while this process is dead: by a guard, which waits at a
// pipe for its end and then does what enforce does, by the same rule. It looks
// once a second, and ten times a second while there is something to cut, so that
// beside the bound there is what was written since it last looked.
//
// What a file keeps is told by the blocks that it has, since nothing in a shell
// finds the end of a hole; where to cut is reckoned from the file's length, so
// that blocks which a file system has laid up for what is yet to come cost no
// line.
const (
	logGuardScript = `read -r _
cd "$1" || exit
while [ -e "$1" ] && [ -e "$2" ]; do
	` + cutScript + `
	if [ -n "$cuts" ]; then sleep 0.1; else sleep 1; fi
done`

	// cutScript cuts the logs in the folder that it runs in, once. $3 is how many
	// bytes are kept for a container whose folder has no file that says so, and $4
	// what cuts are a multiple of.
	cutScript = `cuts=$(find . -name '[0-9]*.out' -exec stat -c '%b %s %n' {} + -o -name '[0-9]*.err' -exec stat -c '%b %s %n' {} + | awk -v limit="$3" -v align="$4" '
	{
		split($3, path, "/"); id = path[2]; file = path[3]; run = file + 0
		kept[id, file] = $1 * 512 < $2 ? $1 * 512 : $2
		size[id, file] = $2
		total[id] += kept[id, file]; of[id, run] += kept[id, file]
		if (run > last[id]) last[id] = run
	}
	END {
		for (id in total) {
			max = limit; if ((getline line <(id "/limit")) > 0) max = line + 0; close(id "/limit")
			for (run = 1; run < last[id] && total[id] > max; run++) if ((id, run) in of) {
				print "-", id "/" run; total[id] -= of[id, run]
			}
			if (total[id] <= max) continue
			file = last[id] ".out"; other = last[id] ".err"
			if (kept[id, other] > kept[id, file]) file = other
			to = size[id, file] - kept[id, file] + total[id] - max + int(max / 8)
			printf "%.0f %s\n", to - to % align, id "/" file
		}
	}')
	[ -z "$cuts" ] || printf '%s\n' "$cuts" | while read -r to file; do
		if [ "$to" = - ]; then rm -f "$file".*; else fallocate -p -o 0 -l "$to" "$file"; fi
	done`
)

// limitFile is in the log folder of a container whose limit is not the default.
const limitFile = "limit"

// logGuard is the guard of the logs and the pipe by which it learns of our end.
type logGuard struct {
	mu    sync.Mutex // guards what follows
	begun bool
	alive *os.File // nobody else has it open; nil when there is no guard
}

func (r *Runtime) logsDir() string { return filepath.Join(r.root, "logs") }

func (r *Runtime) logGuardProcess() guard {
	file := filepath.Join(r.state, "logs")
	return guard{
		file: file, name: "orchestrate-logs", script: logGuardScript,
		args: []string{r.logsDir(), file, strconv.FormatInt(logLimit(runtime.LogLimits{}), 10), strconv.Itoa(punchAlign)},
	}
}

// guardLogs sees that there is a guard, before there is output to bound.
func (r *Runtime) guardLogs() {
	r.logGuard.mu.Lock()
	defer r.logGuard.mu.Unlock()
	if r.logGuard.begun {
		return
	}
	r.logGuard.begun = true
	if err := r.startLogGuard(); err != nil {
		r.log.Warn("logs are not bounded while no program has the runtime open", "error", err)
	}
}

func (r *Runtime) startLogGuard() error {
	for _, program := range []string{"find", "stat", "awk", "fallocate"} {
		if _, err := exec.LookPath(program); err != nil {
			return err
		}
	}
	its, ours, err := os.Pipe()
	if err != nil {
		return err
	}
	defer its.Close()
	if err := r.logGuardProcess().start(its); err != nil {
		ours.Close()
		return err
	}
	r.logGuard.alive = ours
	return nil
}

// endLogGuard ends the guard, or with containers that are left leaves the logs to
// it.
func (r *Runtime) endLogGuard(left bool) (err error) {
	r.logGuard.mu.Lock()
	defer r.logGuard.mu.Unlock()
	if !left {
		err = r.logGuardProcess().end()
	}
	if r.logGuard.alive != nil {
		err = errors.Join(err, r.logGuard.alive.Close())
		r.logGuard.alive = nil
	}
	return err
}

// saveLimit writes down what the guard has to know of a container's logs.
func saveLimit(dir string, limit int64) error {
	if limit == logLimit(runtime.LogLimits{}) {
		return nil
	}
	return os.WriteFile(filepath.Join(dir, limitFile), fmt.Appendln(nil, limit), 0o600)
}
