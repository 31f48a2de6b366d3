//go:build linux

package containerd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// The output of a container lies in a folder named by its ID, one pair of
// files for each run: 1.out, 1.err, 2.out and so on. The shim appends to them
// without this program, so nothing is lost when it ends, is killed or is slow.
//
// The files are bounded by punching a hole over their oldest part
// (fallocate(2)): a file's length grows for ever, the disk it takes does not,
// and what is appended meanwhile is not touched. Renaming would need the
// shim's help, and copying and truncating loses what is written in between.
// While no program has the runtime open a guard punches; the next Open catches
// up.
//
// Raw output has no times. Beside each file lies an index, 1.out.idx, of
// pairs of 8 bytes, little-endian: a length that the file had, and when that
// was seen, in nanoseconds since 1970. A line's time is that of the first
// pair at or behind its end: right to about a millisecond while this program
// runs, and the file's time of modification for what was written while it did
// not.

const (
	// punchAlign is a multiple of the block sizes in use, so that a hole is
	// made of whole blocks and lseek(2) finds its end.
	punchAlign = 64 << 10
	// indexEvery is the least time between two pairs of an index.
	indexEvery = time.Millisecond

	defaultMaxBytes = 16 << 20
	defaultMaxFiles = 2
)

var streams = [2]struct{ name, suffix string }{{"stdout", ".out"}, {"stderr", ".err"}}

// logLimit is how many bytes are kept for a container, over all its files.
func logLimit(l runtime.LogLimits) int64 {
	if l.MaxBytes == 0 {
		l.MaxBytes = defaultMaxBytes
	}
	if l.MaxFiles == 0 {
		l.MaxFiles = defaultMaxFiles
	}
	// Below this punching whole blocks would leave nothing.
	return max(l.MaxBytes*int64(1+l.MaxFiles), 4*punchAlign)
}

// logDir is the log folder of a container that runs.
type logDir struct {
	path  string
	limit int64

	mu      sync.Mutex
	run     int
	streams [2]*logStream
	changed chan struct{} // closed and renewed when there is more to read
	warned  bool
}

// logStream is one file of the current run and its index.
type logStream struct {
	path    string
	index   *os.File  // nil before the first pair
	size    int64     // length when last looked
	head    int64     // end of the hole at the start
	written time.Time // of the last pair in the index
	pending time.Time // when size was seen, if that is not in the index
}

// runs returns the numbers of the runs whose output is kept, in order.
func runs(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []int
	for _, e := range entries {
		if number, ok := strings.CutSuffix(e.Name(), streams[0].suffix); ok {
			if n, err := strconv.Atoi(number); err == nil {
				list = append(list, n)
			}
		}
	}
	slices.Sort(list)
	return list, nil
}

func logFile(dir string, run, stream int) string {
	return filepath.Join(dir, strconv.Itoa(run)+streams[stream].suffix)
}

// newRun makes the files of the next run.
func newRun(dir string) (run int, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	list, err := runs(dir)
	if err != nil {
		return 0, err
	}
	run = 1
	if len(list) > 0 {
		run = list[len(list)-1] + 1
	}
	for i := range streams {
		f, err := os.OpenFile(logFile(dir, run, i), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return 0, err
		}
		f.Close()
	}
	return run, nil
}

// openLogDir begins to index a run, after what an earlier program indexed.
func openLogDir(dir string, run int, limit int64) (*logDir, error) {
	d := &logDir{path: dir, run: run, limit: limit, changed: make(chan struct{})}
	for i := range streams {
		s := &logStream{path: logFile(dir, run, i)}
		d.streams[i] = s
		info, err := os.Stat(s.path)
		if err == nil && info.Size() > 0 {
			if s.head, err = dataStart(s.path); err == nil {
				s.size, s.pending = info.Size(), info.ModTime()
				err = s.flush()
			}
		}
		if err != nil {
			d.close()
			return nil, err
		}
	}
	d.enforce()
	return d, nil
}

// dataStart returns where the hole at the start of a file ends.
func dataStart(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return seekData(f, 0), nil
}

// seekData returns the offset of the first data at or behind offset.
func seekData(f *os.File, offset int64) int64 {
	at, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	if err != nil { // none behind it, or the file system does not say
		return offset
	}
	return at
}

// flush writes the pair that is due to the index.
func (s *logStream) flush() error {
	if s.pending.IsZero() {
		return nil
	}
	if s.index == nil {
		// Most containers write nothing to stderr, and some nothing at all.
		var err error
		if s.index, err = os.OpenFile(s.path+".idx", os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600); err != nil {
			return err
		}
	}
	var pair [16]byte
	binary.LittleEndian.PutUint64(pair[:8], uint64(s.size))
	binary.LittleEndian.PutUint64(pair[8:], uint64(s.pending.UnixNano()))
	s.written, s.pending = s.pending, time.Time{}
	_, err := s.index.Write(pair[:])
	return err
}

// look indexes what was appended to the files.
func (d *logDir) look(now time.Time) (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.streams {
		info, statErr := os.Stat(s.path)
		if statErr != nil || info.Size() == s.size {
			continue
		}
		if now.Sub(s.written) >= indexEvery {
			err = errors.Join(err, s.flush())
		}
		s.size, s.pending = info.Size(), now
		if now.Sub(s.written) >= indexEvery {
			err = errors.Join(err, s.flush())
		}
	}
	err = errors.Join(err, d.enforce())
	d.wake()
	return err
}

// wake lets those who follow read on; d.mu is held.
func (d *logDir) wake() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// enforce deletes the oldest output until what is kept is within the limit.
func (d *logDir) enforce() error {
	kept := d.streams[0].size - d.streams[0].head + d.streams[1].size - d.streams[1].head
	if kept <= d.limit/2 && d.run == 1 {
		return nil
	}
	old, err := runs(d.path)
	if err != nil {
		return err
	}
	old = slices.DeleteFunc(old, func(n int) bool { return n >= d.run })
	sizes := make([]int64, len(old))
	for i, n := range old {
		for stream := range streams {
			path := logFile(d.path, n, stream)
			if info, err := os.Stat(path); err == nil {
				head, err := dataStart(path)
				if err == nil {
					sizes[i] += info.Size() - head
				}
			}
		}
		kept += sizes[i]
	}
	for i, n := range old {
		if kept <= d.limit {
			return nil
		}
		if err := removeRun(d.path, n); err != nil {
			return err
		}
		kept -= sizes[i]
	}
	if kept <= d.limit {
		return nil
	}
	// An eighth more than needed, so as not to do it for each line.
	excess := kept - d.limit + d.limit/8
	s := d.streams[0]
	if other := d.streams[1]; other.size-other.head > s.size-s.head {
		s = other
	}
	return s.punch(min(s.head+excess, s.size))
}

func removeRun(dir string, run int) error {
	var errs []error
	for stream := range streams {
		path := logFile(dir, run, stream)
		for _, p := range []string{path, path + ".idx"} {
			if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// punch frees the disk of a file up to an offset, and of its index.
func (s *logStream) punch(to int64) error {
	to -= to % punchAlign
	if to <= s.head {
		return nil
	}
	f, err := os.OpenFile(s.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, to); err != nil {
		return fmt.Errorf("%s cannot be bounded on this file system: fallocate: %w", s.path, err)
	}
	s.head = to
	if s.index == nil {
		return nil
	}
	info, err := s.index.Stat()
	if err != nil {
		return err
	}
	pairs, err := readIndex(s.index, seekData(s.index, 0), info.Size())
	if err != nil {
		return err
	}
	first := 0
	for first < len(pairs) && pairs[first].offset <= to {
		first++
	}
	gone := info.Size() - int64(len(pairs)-first)*16
	if gone -= gone % punchAlign; gone > 0 {
		err = unix.Fallocate(int(s.index.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, gone)
	}
	return err
}

type indexPair struct {
	offset int64
	at     int64 // nanoseconds since 1970
}

func readIndex(f *os.File, from, to int64) ([]indexPair, error) {
	from -= from % 16
	raw := make([]byte, max(to-from, 0))
	n, err := f.ReadAt(raw, from)
	if err != nil && n < len(raw) {
		return nil, err
	}
	pairs := make([]indexPair, 0, n/16)
	for ; len(raw) >= 16; raw = raw[16:] {
		pairs = append(pairs, indexPair{
			offset: int64(binary.LittleEndian.Uint64(raw)), at: int64(binary.LittleEndian.Uint64(raw[8:])),
		})
	}
	return pairs, nil
}

func (d *logDir) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.streams {
		if s == nil {
			continue
		}
		s.flush()
		if s.index != nil {
			s.index.Close()
		}
	}
	d.wake()
}

// hasWriter reports whether anyone has a file open for writing: a lease for
// reading is only given when nobody has (fcntl(2), F_SETLEASE).
func hasWriter(f *os.File) bool {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		return errors.Is(err, unix.EAGAIN)
	}
	unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	return false
}
