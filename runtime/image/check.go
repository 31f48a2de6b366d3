package image

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strings"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// Limits bounds what an archive may hold. Zero fields mean the defaults.
type Limits struct {
	// Bytes of the archive, after a compression around all of it. The
	// default is 32 GiB.
	Bytes int64
	// Entries of the archive, and of each layer. The default is a million.
	Entries int
	// Unpacked is how many bytes all layers may have when they are unpacked.
	// The default is 64 GiB.
	Unpacked int64
	// Ratio is how many times larger than it is a layer, or the archive, may
	// become when it is decompressed, once it is above 64 MiB. The default
	// is 250; gzip's own limit is 1032, which only bombs come near.
	Ratio int64
	// Zstd decompresses; without it what needs it is refused.
	Zstd func(io.Reader) (io.ReadCloser, error)
}

const (
	ratioFloor = 64 << 20 // bytes, below which no ratio is a bomb
	maxJSON    = 8 << 20  // bytes of an index, manifest or configuration
	maxDepth   = 4        // of indexes in indexes
	maxBlobs   = 10_000   // descriptors that are followed
)

func (l Limits) withDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = 32 << 30
	}
	if l.Entries == 0 {
		l.Entries = 1_000_000
	}
	if l.Unpacked == 0 {
		l.Unpacked = 64 << 30
	}
	if l.Ratio == 0 {
		l.Ratio = 250
	}
	return l
}

// Archive is an archive of images that was checked, as a plain tar file that
// will be deleted by Close.
type Archive struct {
	// References are the names that the archive gives its images.
	References []string
	file       *os.File
}

// Reader returns the archive from its start. Only one reader is valid at a
// time.
func (a *Archive) Reader() (io.Reader, error) {
	if _, err := a.file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return bufio.NewReaderSize(a.file, 1<<20), nil
}

// Close deletes the file.
func (a *Archive) Close() error {
	err := a.file.Close()
	if rmErr := os.Remove(a.file.Name()); err == nil && !errors.Is(rmErr, os.ErrNotExist) {
		err = rmErr
	}
	return err
}

// Check reads an OCI image layout or a "docker save" archive into a file in
// dir and checks all of it: every entry, every digest, every layer down to
// the paths in it. What is wrong is a *[runtime.ArchiveError]; other errors
// are of the reader, the context or the disk. The caller closes the Archive.
//
// A layer may hold symbolic links to anywhere, as those of most images do:
// they mean something in the container alone. What is refused is an entry
// that would be written through one that leads out of the layer.
func Check(ctx context.Context, r io.Reader, dir string, limits Limits) (_ *Archive, err error) {
	limits = limits.withDefaults()
	f, err := os.CreateTemp(dir, "archive-")
	if err != nil {
		return nil, err
	}
	a := &Archive{file: f}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	c := &checker{ctx: ctx, file: f, limits: limits, files: map[string]file{}, links: map[string]string{}}
	if err := c.spool(r); err != nil {
		return nil, err
	}
	if err := c.readEntries(); err != nil {
		return nil, err
	}
	if a.References, err = c.checkImages(); err != nil {
		return nil, err
	}
	return a, nil
}

// file is a regular file of the archive.
type file struct {
	offset, size int64
	digest       string
}

type checker struct {
	ctx      context.Context
	file     *os.File
	limits   Limits
	files    map[string]file   // by clean path
	links    map[string]string // symbolic links, to clean paths
	blobs    int               // descriptors followed
	unpacked int64             // bytes of the layers checked
	layers   map[string]string // blob path + compression: diff ID of a layer that was checked
}

func bad(entry, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &runtime.ArchiveError{Entry: entry, Reason: err.Error(), Err: errors.Unwrap(err)}
}

// ctxReader stops a long read when the context ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// sourceError keeps an error of the caller's reader apart from damage.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return "read archive: " + e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

type sourceReader struct{ r io.Reader }

func (s sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		err = &sourceError{err}
	}
	return n, err
}

// damage turns an error of a decoder into an ArchiveError, and leaves those
// that are not the archive's fault.
func damage(entry, doing string, err error) error {
	var archive *runtime.ArchiveError
	var source *sourceError
	var disk *os.PathError
	switch {
	case errors.As(err, &archive), errors.As(err, &source), errors.As(err, &disk),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return bad(entry, "%s: %w", doing, err)
}

// spool writes the archive to the file, decompressed.
func (c *checker) spool(r io.Reader) error {
	source := &counter{r: sourceReader{ctxReader{c.ctx, r}}}
	plain, err := decompress(bufio.NewReaderSize(source, 1<<20), c.limits)
	if err != nil {
		return damage("", "decompress", err)
	}
	defer plain.Close()
	w := bufio.NewWriterSize(c.file, 1<<20)
	limited := &bomb{r: plain, source: source, max: c.limits.Bytes, ratio: c.limits.Ratio, what: "the archive"}
	if _, err := io.Copy(w, limited); err != nil {
		return damage("", "decompress", err)
	}
	return w.Flush()
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// bomb reads what is decompressed from source until it is too much.
type bomb struct {
	r      io.Reader
	source *counter
	n, max int64
	ratio  int64
	what   string
}

func (b *bomb) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	if b.n > b.max {
		return n, bad("", "%s has more than %d bytes", b.what, b.max)
	}
	if b.n > ratioFloor && b.n/b.ratio > b.source.n {
		return n, bad("", "%s becomes more than %d times larger when it is decompressed", b.what, b.ratio)
	}
	return n, err
}

// decompress finds by its first bytes how a stream is compressed.
func decompress(r *bufio.Reader, limits Limits) (io.ReadCloser, error) {
	magic, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case strings.HasPrefix(string(magic), "\x1f\x8b"):
		return gzip.NewReader(r)
	case string(magic) == "\x28\xb5\x2f\xfd":
		if limits.Zstd == nil {
			return nil, errors.New("zstd is not supported here: want gzip or no compression")
		}
		return limits.Zstd(r)
	}
	return io.NopCloser(r), nil
}

// cleanName returns an entry's name in the one form that it is looked up by,
// or why it is refused.
func cleanName(name string) (string, error) {
	if name == "" || len(name) > 4096 || strings.ContainsRune(name, 0) {
		return "", errors.New("its name is empty, too long or has a zero byte")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errors.New(`its path contains ".."`)
		}
	}
	return path.Clean(name), nil
}

// readEntries records where each file is and what its digest is.
func (c *checker) readEntries() error {
	size, err := c.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	position := &counter{r: io.NewSectionReader(c.file, 0, size)}
	tr := tar.NewReader(ctxReader{c.ctx, position})
	seen := map[string]bool{}
	for entries := 1; ; entries++ {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return damage("", "tar", err)
		}
		if entries > c.limits.Entries {
			return bad("", "it has more than %d entries", c.limits.Entries)
		}
		name, err := cleanName(h.Name)
		if err == nil && path.IsAbs(name) {
			err = errors.New("its path is absolute")
		}
		if err != nil {
			return bad(h.Name, "%w", err)
		}
		if h.Typeflag != tar.TypeDir && seen[name] {
			return bad(h.Name, "it is there twice")
		}
		seen[name] = true
		switch h.Typeflag {
		case tar.TypeDir:
		case tar.TypeReg:
			if h.Size < 0 || h.Size > size {
				return bad(h.Name, "it claims %d bytes in an archive of %d", h.Size, size)
			}
			f := file{offset: position.n, size: h.Size}
			sum := sha256.New()
			if n, err := io.Copy(sum, tr); err != nil || n != h.Size {
				return damage(h.Name, "tar", fmt.Errorf("%d of %d bytes: %w", n, h.Size, orEOF(err)))
			}
			if position.n-f.offset != h.Size {
				return bad(h.Name, "it is a sparse file, which no archive of images has")
			}
			f.digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
			c.files[name] = f
		case tar.TypeSymlink:
			// Old "docker save" archives link equal layers.
			target := path.Join(path.Dir(name), h.Linkname)
			if path.IsAbs(h.Linkname) || target == ".." || strings.HasPrefix(target, "../") {
				return bad(h.Name, "it is a link out of the archive, to %q", h.Linkname)
			}
			c.links[name] = target
		default:
			return bad(h.Name, "it is of type %q: want a file, folder or symbolic link", h.Typeflag)
		}
	}
}

func orEOF(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

// find returns a file, by way of at most one link.
func (c *checker) find(name string) (file, bool) {
	name = path.Clean(name)
	if target, ok := c.links[name]; ok {
		name = target
	}
	f, ok := c.files[name]
	return f, ok
}

func (c *checker) open(f file) *io.SectionReader {
	return io.NewSectionReader(c.file, f.offset, f.size)
}

func (c *checker) readJSONFile(name string) ([]byte, error) {
	f, ok := c.find(name)
	if !ok {
		return nil, bad(name, "it is missing")
	}
	if f.size > maxJSON {
		return nil, bad(name, "it has %d bytes: want at most %d", f.size, maxJSON)
	}
	text := make([]byte, f.size)
	if _, err := io.ReadFull(c.open(f), text); err != nil {
		return nil, err
	}
	return text, nil
}

// checkLayer unpacks a layer to nowhere and compares it with its diff ID.
func (c *checker) checkLayer(name, diffID string) error {
	f, ok := c.find(name)
	if !ok {
		return bad(name, "the layer is missing")
	}
	if got, ok := c.layers[name]; ok {
		if got != diffID {
			return bad(name, "its content has the diff ID %s, the configuration says %s", got, diffID)
		}
		return nil
	}
	source := &counter{r: ctxReader{c.ctx, c.open(f)}}
	plain, err := decompress(bufio.NewReaderSize(source, 1<<20), c.limits)
	if err != nil {
		return damage(name, "decompress", err)
	}
	defer plain.Close()
	sum := sha256.New()
	limited := &bomb{r: plain, source: source, max: c.limits.Unpacked - c.unpacked, ratio: c.limits.Ratio, what: "the layer"}
	tee := io.TeeReader(limited, sum)
	if err := c.checkLayerEntries(name, tar.NewReader(tee)); err != nil {
		return err
	}
	// The digest is of the padding at the end as well.
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return damage(name, "decompress", err)
	}
	c.unpacked += limited.n
	got := "sha256:" + hex.EncodeToString(sum.Sum(nil))
	if c.layers == nil {
		c.layers = map[string]string{}
	}
	c.layers[name] = got
	if got != diffID {
		return bad(name, "its content has the diff ID %s, the configuration says %s", got, diffID)
	}
	return nil
}

func (c *checker) checkLayerEntries(layer string, tr *tar.Reader) error {
	links := map[string]string{}
	for entries := 1; ; entries++ {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return damage(layer, "layer", err)
		}
		if entries > c.limits.Entries {
			return bad(layer, "the layer has more than %d entries", c.limits.Entries)
		}
		at := layer + "!" + h.Name
		name, err := cleanName(h.Name)
		if err != nil {
			return bad(at, "%w", err)
		}
		name = strings.TrimPrefix(name, "/")
		// Sparse entries have their size expanded by the reader.
		if h.Size < 0 || h.Size > c.limits.Unpacked || h.Size == math.MaxInt64 {
			return bad(at, "it claims %d bytes", h.Size)
		}
		if dir, out := throughLink(links, path.Dir(name)); out {
			return bad(at, "it would be written through the link %s, which leads out", dir)
		}
		switch h.Typeflag {
		case tar.TypeSymlink:
			links[name] = h.Linkname
		case tar.TypeLink:
			target, err := cleanName(h.Linkname)
			if err != nil {
				return bad(at, "it is a hard link to %q: %w", h.Linkname, err)
			}
			target = strings.TrimPrefix(target, "/")
			if dir, out := throughLink(links, path.Dir(target)); out {
				return bad(at, "it is a hard link through the link %s, which leads out", dir)
			}
		default:
			delete(links, name)
		}
		n, err := io.Copy(io.Discard, tr)
		if err != nil {
			return damage(at, "layer", err)
		}
		if (h.Typeflag == tar.TypeReg) && n != h.Size {
			return bad(at, "it has %d of %d bytes", n, h.Size)
		}
	}
}

// throughLink reports whether a folder of a layer is, or is below, a symbolic
// link of the same layer that is absolute or climbs above the root.
func throughLink(links map[string]string, dir string) (link string, out bool) {
	if len(links) == 0 {
		return "", false
	}
	for d := dir; d != "." && d != "/"; d = path.Dir(d) {
		target, ok := links[d]
		if !ok {
			continue
		}
		joined := path.Join(path.Dir(d), target)
		if path.IsAbs(target) || joined == ".." || strings.HasPrefix(joined, "../") {
			return d, true
		}
	}
	return "", false
}
