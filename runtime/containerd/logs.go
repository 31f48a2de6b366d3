//go:build linux

package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

var _ runtime.LogReader = (*Runtime)(nil)

// writerRecheck is how long after an exit a file that the shim seems to have
// open is looked at again.
const writerRecheck = 10 * time.Millisecond

// maxLine is the length above which a line comes in pieces.
const maxLine = 16 << 10

func (r *Runtime) logDir(id string) string { return filepath.Join(r.logsDir(), id) }

// makeLogs makes the files that the shim writes a run's output to, and
// watches them.
func (r *Runtime) makeLogs(spec runtime.Spec, rec *record) (stdout, stderr string, err error) {
	dir := r.logDir(spec.ID)
	if rec.Run, err = newRun(dir); err != nil {
		return "", "", fmt.Errorf("logs: %w", err)
	}
	rec.LogLimit = logLimit(spec.Logs)
	if err := saveLimit(dir, rec.LogLimit); err != nil {
		return "", "", fmt.Errorf("logs: %w", err)
	}
	if err := r.watchLogs(*rec); err != nil {
		return "", "", fmt.Errorf("logs: %w", err)
	}
	return logFile(dir, rec.Run, 0), logFile(dir, rec.Run, 1), nil
}

func (r *Runtime) watchLogs(rec record) error {
	r.guardLogs()
	d, err := openLogDir(r.logDir(rec.ID), rec.Run, rec.LogLimit)
	if err != nil {
		return err
	}
	if err := r.logs.add(rec.ID, d); err != nil {
		d.close()
		return err
	}
	return nil
}

// RemoveLogs implements [runtime.LogReader].
func (r *Runtime) RemoveLogs(ctx context.Context, id string) error {
	if !runtime.ValidID(id) {
		return nil // no container ever had it
	}
	release, err := r.take(ctx, id)
	if err != nil {
		return wrap("remove logs of container", id, err)
	}
	defer release()
	if c, err := r.container(id); err == nil && !c.exited() {
		return wrap("remove logs of container", id, errors.New("it is running"))
	}
	r.logs.remove(id)
	if err := os.RemoveAll(r.logDir(id)); err != nil {
		return wrap("remove logs of container", id, err)
	}
	return nil
}

// Logs implements [runtime.LogReader]. Lines of stdout and stderr are merged
// by their times, which are no finer than a millisecond.
func (r *Runtime) Logs(ctx context.Context, id string, opts runtime.LogOptions, each func(runtime.LogLine) error) error {
	fail := func(err error) error { return wrap("logs of container", id, err) }
	if !runtime.ValidID(id) {
		return fail(runtime.ErrNotFound)
	}
	done, err := r.enter()
	if err != nil {
		return fail(err)
	}
	done() // Close does not wait for those who follow; it ends them
	dir := r.logDir(id)
	list, err := runs(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(runtime.ErrNotFound)
	}
	if err != nil {
		return fail(err)
	}
	c, _ := r.container(id)
	deliver := filter(ctx, opts.Since, each)
	tail := &tail{n: opts.Tail, each: deliver}
	for _, run := range list {
		readers, err := openRun(dir, run)
		if errors.Is(err, fs.ErrNotExist) {
			continue // bounded away
		}
		if err != nil {
			return fail(err)
		}
		live := c != nil && c.record.Run == run
		err = r.readRun(ctx, id, c, readers, live, opts.Follow, tail)
		for _, s := range readers {
			s.file.Close()
		}
		if err != nil {
			return err
		}
	}
	return tail.flush()
}

// filter leaves out the lines before since.
func filter(ctx context.Context, since time.Time, each func(runtime.LogLine) error) func(runtime.LogLine) error {
	return func(line runtime.LogLine) error {
		if line.Time.Before(since) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return each(line)
	}
}

// tail holds back all but the last n lines until flush; then, and with n of
// 0, it lets lines through.
type tail struct {
	n     int
	lines []runtime.LogLine
	each  func(runtime.LogLine) error
}

func (t *tail) line(l runtime.LogLine) error {
	if t.n <= 0 {
		return t.each(l)
	}
	t.lines = append(t.lines, l)
	if len(t.lines) > 2*t.n {
		t.lines = append(t.lines[:0], t.lines[len(t.lines)-t.n:]...)
	}
	return nil
}

func (t *tail) flush() error {
	lines := t.lines[max(0, len(t.lines)-t.n):]
	t.n, t.lines = 0, nil
	for _, l := range lines {
		if err := t.each(l); err != nil {
			return err
		}
	}
	return nil
}

// readRun delivers the lines of one run.
func (r *Runtime) readRun(ctx context.Context, id string, c *container, readers [2]*logReader, live, follow bool, to *tail) error {
	for {
		// In this order: what was written before the end that is seen is
		// read after it.
		var changed <-chan struct{}
		if d := r.logs.get(id); live && d != nil {
			d.mu.Lock()
			changed = d.changed
			d.mu.Unlock()
		}
		ended := !live || c.exited() && !hasWriter(readers[0].file) && !hasWriter(readers[1].file)
		if err := mergeLines(readers, ended, to.line); err != nil {
			return err
		}
		if ended || !follow {
			return nil
		}
		if err := to.flush(); err != nil {
			return err
		}
		exited, again := c.done, (<-chan time.Time)(nil)
		if c.exited() {
			exited = nil
			if changed == nil {
				return nil
			}
			// The kernel tells of the shim's close a moment before the file
			// counts as closed (__fput: fsnotify_close comes first), and then
			// no more.
			again = time.After(writerRecheck)
		}
		select {
		case <-changed:
		case <-again:
		case <-exited:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.ctx.Done():
			return wrap("logs of container", id, runtime.ErrClosed)
		}
	}
}

// mergeLines delivers the whole lines of both streams in the order of their
// times, and with all also what has no newline at its end.
func mergeLines(readers [2]*logReader, all bool, each func(runtime.LogLine) error) error {
	for _, s := range readers {
		if err := s.refresh(); err != nil {
			return err
		}
	}
	for {
		var next *logReader
		for _, s := range readers {
			if s.peeked == nil {
				var err error
				if s.peeked, err = s.next(all); err != nil {
					return err
				}
			}
			if s.peeked != nil && (next == nil || s.peeked.Time.Before(next.peeked.Time)) {
				next = s
			}
		}
		if next == nil {
			return nil
		}
		line := *next.peeked
		next.peeked = nil
		if err := each(line); err != nil {
			return err
		}
	}
}

// logReader reads the lines of one stream of a run.
type logReader struct {
	file    *os.File
	stream  string
	offset  int64  // of what is to be read into data next
	data    []byte // read, not yet delivered
	skip    bool   // up to the next newline: the line's start was deleted
	end     int64  // of the file when refreshed
	modTime time.Time
	index   []indexPair
	at      int   // in index
	indexed int64 // bytes of the index file that were read
	peeked  *runtime.LogLine
}

func openRun(dir string, run int) (readers [2]*logReader, err error) {
	for i, s := range streams {
		f, err := os.Open(logFile(dir, run, i))
		if err != nil {
			if i > 0 {
				readers[0].file.Close()
			}
			return readers, err
		}
		readers[i] = &logReader{file: f, stream: s.name}
	}
	return readers, nil
}

// refresh looks how far the stream and its index have come.
func (s *logReader) refresh() error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	s.end, s.modTime = info.Size(), info.ModTime()
	f, err := os.Open(s.file.Name() + ".idx")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return err
	}
	size := info.Size() - info.Size()%16
	from := max(s.indexed, seekData(f, min(s.indexed, max(size-1, 0))))
	pairs, err := readIndex(f, from, size)
	if err != nil {
		return err
	}
	s.index, s.at, s.indexed = append(s.index[s.at:], pairs...), 0, size
	return nil
}

// next returns the next whole line, or nil when there is none yet.
func (s *logReader) next(all bool) (*runtime.LogLine, error) {
	for {
		if i := bytes.IndexByte(s.data, '\n'); i >= 0 {
			line, keep := s.take(min(i, maxLine), i <= maxLine)
			if keep {
				return line, nil
			}
			continue
		}
		if len(s.data) > maxLine {
			if line, keep := s.take(maxLine, false); keep {
				return line, nil
			}
			continue
		}
		if s.offset >= s.end {
			break
		}
		if err := s.fill(); err != nil {
			return nil, err
		}
	}
	if all && len(s.data) > 0 {
		if line, keep := s.take(len(s.data), true); keep {
			return line, nil
		}
	}
	return nil, nil
}

// take cuts n bytes off the data, and the newline behind them if whole.
func (s *logReader) take(n int, whole bool) (*runtime.LogLine, bool) {
	end := s.offset - int64(len(s.data)) + int64(n)
	line := &runtime.LogLine{
		Time: s.timeOf(end), Stream: s.stream, Text: bytes.Clone(s.data[:n]), Partial: !whole,
	}
	s.data = s.data[n:]
	if whole && len(s.data) > 0 {
		s.data = s.data[1:]
	}
	skipped := s.skip
	if whole {
		s.skip = false
	}
	return line, !skipped
}

// fill reads more. What is deleted while it is being read is found out by
// looking for the hole afterwards: holes only grow from the start.
func (s *logReader) fill() error {
	buf := make([]byte, min(s.end-s.offset, 64<<10))
	n, err := s.file.ReadAt(buf, s.offset)
	if n == 0 && err != nil {
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	if start := seekData(s.file, s.offset); start > s.offset {
		s.offset, s.data, s.skip = start, nil, true
		return nil
	}
	s.data = append(s.data, buf[:n]...)
	s.offset += int64(n)
	return nil
}

func (s *logReader) timeOf(end int64) time.Time {
	for s.at < len(s.index) && s.index[s.at].offset < end {
		s.at++
	}
	if s.at < len(s.index) {
		return time.Unix(0, s.index[s.at].at)
	}
	return s.modTime
}
