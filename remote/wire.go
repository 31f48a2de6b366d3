package remote

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// The calls. Task and container are query parameters, as their names may hold
// what a path may not.
const (
	pathLogs  = "/v1/logs"
	pathExec  = "/v1/exec"
	pathStats = "/v1/stats"
)

// An answer is frames: a byte that says what it is, four that say how long, and
// that. The last one of every answer is an end or an error; an answer without
// either was cut off.
const (
	frameLine   byte = 'l' // JSON of a line
	frameStdout byte = 'o'
	frameStderr byte = 'e'
	frameBeat   byte = 'b' // nothing: the connection stands
	frameEnd    byte = '.' // JSON of the result
	frameError  byte = '!' // JSON of a failure
)

// maxFrame bounds what a peer can make us hold. A line has at most 16 KiB, half as
// much again as JSON, and its time.
const maxFrame = 128 << 10

func writeFrame(w io.Writer, kind byte, data []byte) error {
	frame := make([]byte, 5, 5+len(data))
	frame[0] = kind
	binary.BigEndian.PutUint32(frame[1:], uint32(len(data)))
	_, err := w.Write(append(frame, data...))
	return err
}

func readFrame(r io.Reader) (kind byte, data []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes; want at most %d", n, maxFrame)
	}
	data = make([]byte, n)
	_, err = io.ReadFull(r, data)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return head[0], data, err
}

// line is a log line as it travels.
type line struct {
	Time    time.Time `json:"t"`
	Stream  string    `json:"s"`
	Text    []byte    `json:"x"`
	Partial bool      `json:"p,omitempty"`
}

// command is an Exec as it travels, one line before its standard input.
type command struct {
	Args     []string `json:"args"`
	Env      []string `json:"env,omitempty"`
	Dir      string   `json:"dir,omitempty"`
	User     string   `json:"user,omitempty"`
	Terminal bool     `json:"terminal,omitempty"`
	Stdin    bool     `json:"stdin,omitempty"`
	Stdout   bool     `json:"stdout,omitempty"`
	Stderr   bool     `json:"stderr,omitempty"`
}

// result ends an answer.
type result struct {
	Code  int            `json:"code,omitempty"` // of an Exec
	Stats *runtime.Stats `json:"stats,omitempty"`
}

// failure is an error as it travels.
type failure struct {
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
}

// codes are the conditions that a caller can act on.
var codes = map[string]error{
	"not-found": orchestrate.ErrNotFound, "not-running": orchestrate.ErrNotRunning,
	"container-not-found": runtime.ErrNotFound, "unsupported": errors.ErrUnsupported,
}

func failureOf(err error) failure {
	f := failure{Message: err.Error()}
	for code, kind := range codes {
		if errors.Is(err, kind) {
			f.Code = code
		}
	}
	return f
}

// Error is what a node answered in place of a result. It matches the condition
// that it is of, such as [orchestrate.ErrNotFound].
type Error struct {
	Node    string
	Message string
	kind    error
}

func (e *Error) Error() string { return fmt.Sprintf("node %s: %s", e.Node, e.Message) }

// Unwrap returns the condition, if it is a known one.
func (e *Error) Unwrap() error { return e.kind }

// answer reads frames until the end, and hands those before it to each.
func answer(ctx context.Context, node string, r io.Reader, each func(kind byte, data []byte) error) (result, error) {
	for {
		kind, data, err := readFrame(r)
		if err != nil {
			if ctx.Err() != nil {
				return result{}, context.Cause(ctx)
			}
			return result{}, &brokenError{node, err}
		}
		switch kind {
		case frameEnd:
			var res result
			if err := json.Unmarshal(data, &res); err != nil {
				return res, fmt.Errorf("node %s: read its result: %w", node, err)
			}
			return res, nil
		case frameError:
			var f failure
			if err := json.Unmarshal(data, &f); err != nil {
				return result{}, fmt.Errorf("node %s: read its error: %w", node, err)
			}
			return result{}, &Error{Node: node, Message: f.Message, kind: codes[f.Code]}
		case frameBeat:
		default:
			if err := each(kind, data); err != nil {
				return result{}, err
			}
		}
	}
}

// ErrBroken is a connection that ended before the answer did.
var ErrBroken = errors.New("the connection to the node broke")

type brokenError struct {
	node string
	err  error
}

func (e *brokenError) Error() string { return fmt.Sprintf("%v %s: %v", ErrBroken, e.node, e.err) }

func (e *brokenError) Is(target error) bool { return target == ErrBroken }

func (e *brokenError) Unwrap() error { return e.err }
