//go:build linux

package containerd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// logWatch learns from the kernel (inotify(7)) when the shims have written
// output, for all containers in one goroutine, and has it indexed and
// bounded.
type logWatch struct {
	log  *slog.Logger
	file *os.File // the inotify descriptor
	wg   sync.WaitGroup

	mu   sync.Mutex
	byWD map[int32]*logDir
	byID map[string]watched
}

type watched struct {
	wd  int32
	dir *logDir
}

func openLogWatch(log *slog.Logger) (*logWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	w := &logWatch{
		log: log, file: os.NewFile(uintptr(fd), "inotify"),
		byWD: map[int32]*logDir{}, byID: map[string]watched{},
	}
	w.wg.Go(w.run)
	return w, nil
}

// add begins to watch a container's folder, in the place of an earlier run.
func (w *logWatch) add(id string, dir *logDir) error {
	w.remove(id)
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var wd int
	if ctlErr := raw.Control(func(fd uintptr) {
		wd, err = unix.InotifyAddWatch(int(fd), dir.path, unix.IN_MODIFY|unix.IN_CLOSE_WRITE)
	}); ctlErr != nil {
		return ctlErr
	}
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir.path, err)
	}
	w.byWD[int32(wd)] = dir
	w.byID[id] = watched{int32(wd), dir}
	return nil
}

// remove ends the watching of a container's folder, with a last look.
func (w *logWatch) remove(id string) {
	w.mu.Lock()
	it, ok := w.byID[id]
	delete(w.byID, id)
	if ok {
		delete(w.byWD, it.wd)
		if raw, err := w.file.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) { unix.InotifyRmWatch(int(fd), uint32(it.wd)) })
		}
	}
	w.mu.Unlock()
	if ok {
		w.look(it.dir)
		it.dir.close()
	}
}

func (w *logWatch) get(id string) *logDir {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.byID[id].dir
}

func (w *logWatch) look(dir *logDir) {
	if err := dir.look(time.Now()); err != nil {
		dir.mu.Lock()
		first := !dir.warned
		dir.warned = true
		dir.mu.Unlock()
		if first {
			w.log.Warn("the logs of a container are not bounded or have no times", "folder", dir.path, "error", err)
		}
	}
}

// run reads events until the descriptor is closed. Events of one read are
// taken together: a container that writes much costs one look.
func (w *logWatch) run() {
	buf := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				w.log.Error("inotify failed: logs get no times any more", "error", err)
			}
			return
		}
		dirs := map[*logDir]bool{}
		w.mu.Lock()
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(b))
			mask := binary.NativeEndian.Uint32(b[4:])
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
			if mask&unix.IN_Q_OVERFLOW != 0 {
				for _, d := range w.byWD {
					dirs[d] = true
				}
			} else if d := w.byWD[wd]; d != nil {
				dirs[d] = true
			}
			b = b[min(size, len(b)):]
		}
		w.mu.Unlock()
		for d := range dirs {
			w.look(d)
		}
	}
}

func (w *logWatch) close() error {
	err := w.file.Close()
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range w.byID {
		it.dir.look(time.Now())
		it.dir.close()
	}
	w.byID, w.byWD = nil, nil
	return err
}
