package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
)

// entry is one file of a tar stream: its content is data, or what open reads.
type entry struct {
	name string // slash-separated, relative
	mode fs.FileMode
	size int64
	data []byte
	link string
	open func() (io.ReadCloser, error)
}

// stream is a sequence of bytes that can be read more than once, and only
// opens its files when a reader comes to them.
type stream []part

type part struct {
	data []byte
	open func() (io.ReadCloser, error) // instead of data
	size int64
	name string
}

func (s stream) size() (n int64) {
	for _, p := range s {
		n += p.size
	}
	return n
}

func (s stream) digest() (string, error) {
	r := s.reader()
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

func (s stream) reader() io.ReadCloser { return &streamReader{parts: s} }

// streamReader reads the parts in turn. It needs no goroutine, as an io.Pipe
// around a tar.Writer would.
type streamReader struct {
	parts []part
	cur   io.Reader
	file  io.Closer
	left  int64 // bytes of the current part not yet read
}

func (r *streamReader) Read(p []byte) (int, error) {
	for {
		if r.cur == nil {
			if len(r.parts) == 0 {
				return 0, io.EOF
			}
			next := r.parts[0]
			if next.open == nil {
				r.cur = bytes.NewReader(next.data)
			} else {
				f, err := next.open()
				if err != nil {
					return 0, err
				}
				r.cur, r.file = f, f
			}
			r.left = next.size
		}
		if r.left > 0 {
			n, err := r.cur.Read(p[:min(int64(len(p)), r.left)])
			r.left -= int64(n)
			if err == io.EOF {
				err = nil
				if r.left > 0 && n == 0 {
					return n, fmt.Errorf("%s became shorter while it was read", r.parts[0].name)
				}
			}
			if n > 0 || err != nil || len(p) == 0 {
				return n, err
			}
			continue
		}
		r.closeFile()
		r.cur, r.parts = nil, r.parts[1:]
	}
}

func (r *streamReader) closeFile() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

func (r *streamReader) Close() error {
	r.closeFile()
	r.parts, r.cur = nil, nil
	return nil
}

// tarStream lays entries out as a tar archive. Times and owners are left at
// zero: they would make the digest differ from build to build.
func tarStream(entries []entry) (stream, error) {
	var s stream
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: int64(e.mode.Perm()), Format: tar.FormatPAX}
		for bit, tarBit := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
			if e.mode&bit != 0 {
				h.Mode |= tarBit
			}
		}
		size := e.size
		if e.open == nil {
			size = int64(len(e.data))
		}
		switch e.mode.Type() {
		case fs.ModeDir:
			h.Typeflag, h.Name = tar.TypeDir, e.name+"/"
		case fs.ModeSymlink:
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		default:
			h.Typeflag, h.Size = tar.TypeReg, size
		}
		var header bytes.Buffer
		if err := tar.NewWriter(&header).WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		s = append(s, part{data: header.Bytes(), size: int64(header.Len()), name: e.name})
		if h.Size == 0 {
			continue
		}
		s = append(s, part{data: e.data, open: e.open, size: size, name: e.name})
		if pad := -size & 511; pad > 0 {
			s = append(s, part{data: make([]byte, pad), size: pad, name: e.name})
		}
	}
	return append(s, part{data: make([]byte, 1024), size: 1024, name: "end"}), nil
}
