package memory

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// maxLine is the length above which a line comes in pieces.
const maxLine = 16 << 10

// logBuffer keeps the output of one container ID over its runs.
type logBuffer struct {
	mu      sync.Mutex
	lines   []runtime.LogLine
	first   int // number of lines[0], counted from the first line ever
	bytes   int64
	max     int64
	removed bool
	more    chan struct{}     // closed and renewed at each change
	partial map[string][]byte // unfinished line of each stream
}

func newLogBuffer() *logBuffer {
	b := &logBuffer{more: make(chan struct{}), partial: map[string][]byte{}}
	b.limit(runtime.LogLimits{})
	return b
}

func (b *logBuffer) limit(l runtime.LogLimits) {
	if l.MaxBytes == 0 {
		l.MaxBytes = 16 << 20
	}
	if l.MaxFiles == 0 {
		l.MaxFiles = 2
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.max = l.MaxBytes * int64(1+l.MaxFiles)
}

// line adds one whole line.
func (b *logBuffer) line(stream string, text []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(stream, text)
}

func (b *logBuffer) add(stream string, text []byte) {
	now := time.Now()
	for {
		piece := text[:min(len(text), maxLine)]
		text = text[len(piece):]
		b.lines = append(b.lines, runtime.LogLine{
			Time: now, Stream: stream, Text: bytes.Clone(piece), Partial: len(text) > 0,
		})
		b.bytes += int64(len(piece)) + 1
		if len(text) == 0 {
			break
		}
	}
	for b.bytes > b.max && len(b.lines) > 1 {
		b.bytes -= int64(len(b.lines[0].Text)) + 1
		b.lines = b.lines[1:]
		b.first++
	}
	b.wake()
}

func (b *logBuffer) wake() {
	close(b.more)
	b.more = make(chan struct{})
}

// flush makes lines of what was written without a newline at the end.
func (b *logBuffer) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, stream := range []string{"stdout", "stderr"} {
		if rest := b.partial[stream]; len(rest) > 0 {
			b.add(stream, rest)
			delete(b.partial, stream)
		}
	}
}

func (b *logBuffer) writer(stream string) io.Writer { return logWriter{b, stream} }

type logWriter struct {
	b      *logBuffer
	stream string
}

func (w logWriter) Write(p []byte) (int, error) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	data := append(w.b.partial[w.stream], p...)
	for {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			break
		}
		w.b.add(w.stream, data[:i])
		data = data[i+1:]
	}
	w.b.partial[w.stream] = bytes.Clone(data)
	return len(p), nil
}

// Logs implements [runtime.LogReader].
func (r *Runtime) Logs(ctx context.Context, id string, opts runtime.LogOptions, each func(runtime.LogLine) error) error {
	r.mu.Lock()
	b, c := r.logs[id], r.containers[id]
	r.mu.Unlock()
	if b == nil {
		return fmt.Errorf("logs of container %s: %w", id, runtime.ErrNotFound)
	}
	var done <-chan struct{}
	if c != nil {
		done = c.done
	}
	b.mu.Lock()
	next := b.first
	if opts.Tail > 0 {
		next = max(next, b.first+len(b.lines)-opts.Tail)
	}
	b.mu.Unlock()
	for {
		// Whether the container has exited is asked before the lines are
		// read: what it wrote before its exit is then among them.
		exited := done == nil || isClosed(done)
		b.mu.Lock()
		next = max(next, b.first)
		lines := b.lines[next-b.first:]
		next = b.first + len(b.lines)
		more, removed := b.more, b.removed
		b.mu.Unlock()
		for _, line := range lines {
			if line.Time.Before(opts.Since) {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := each(line); err != nil {
				return err
			}
		}
		if !opts.Follow || exited || removed {
			return nil
		}
		select {
		case <-more:
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// RemoveLogs implements [runtime.LogReader].
func (r *Runtime) RemoveLogs(_ context.Context, id string) error {
	r.mu.Lock()
	b := r.logs[id]
	delete(r.logs, id)
	r.mu.Unlock()
	if b != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.removed = true
		b.wake()
	}
	return nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
