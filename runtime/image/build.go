package image

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"time"
)

// Options says what an image's configuration asks for. The zero value runs
// the program of FromBinary as root in /.
type Options struct {
	// Entrypoint is the program and its first arguments. FromBinary's
	// default is the program itself.
	Entrypoint []string
	Command    []string // arguments that a container may replace
	Env        []string // KEY=VALUE
	Dir        string   // working directory
	User       string   // user[:group]
	StopSignal string   // such as "SIGTERM"
	Labels     map[string]string
	Volumes    []string // paths
	// Platform is "linux/" and a Go architecture. FromBinary takes it from
	// the program, FromDir from this machine, when it is empty.
	Platform string
	// Created is written into the configuration; the zero time leaves it out
	// and keeps the digest a function of the content.
	Created time.Time
}

// Image is an image that was built and can be read any number of times. It
// refers to the files that it was built from: they must not change.
type Image struct {
	ref      string
	digest   string
	platform string
	archive  stream
}

// Ref returns the reference the image was built under.
func (i *Image) Ref() string { return i.ref }

// Digest returns the digest of the image's manifest, such as "sha256:…".
func (i *Image) Digest() string { return i.digest }

// Platform returns what the image runs on, such as "linux/amd64".
func (i *Image) Platform() string { return i.platform }

// Size returns the number of bytes that Reader yields.
func (i *Image) Size() int64 { return i.archive.size() }

// Reader returns the image as an OCI layout in a tar stream.
func (i *Image) Reader() io.ReadCloser { return i.archive.reader() }

// WriteTo writes the image as an OCI layout in a tar stream.
func (i *Image) WriteTo(w io.Writer) (int64, error) {
	r := i.Reader()
	defer r.Close()
	return io.Copy(w, r)
}

// The users of an image that FromBinary makes.
const (
	passwd = "root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"
	group  = "root:x:0:\nnobody:x:65534:\n"
)

// FromBinary builds an image that holds a static program for Linux, and
// besides it no more than /etc/passwd and /etc/group with root and nobody, and
// /tmp. The program lies at / under its own name. A program that needs a
// dynamic linker is refused, as there is none in the image.
func FromBinary(ref, file string, opts Options) (*Image, error) {
	fail := func(err error) (*Image, error) { return nil, fmt.Errorf("build image %q from %s: %w", ref, file, err) }
	platform, err := staticPlatform(file)
	if err != nil {
		return fail(err)
	}
	if opts.Platform == "" {
		opts.Platform = platform
	}
	if opts.Platform != platform {
		return fail(fmt.Errorf("the program is for %s, the options say %s", platform, opts.Platform))
	}
	name := filepath.Base(file)
	if opts.Entrypoint == nil {
		opts.Entrypoint = []string{"/" + name}
	}
	info, err := os.Stat(file)
	if err != nil {
		return fail(err)
	}
	entries := []entry{
		{name: "etc", mode: fs.ModeDir | 0o755},
		{name: "etc/group", mode: 0o644, data: []byte(group)},
		{name: "etc/passwd", mode: 0o644, data: []byte(passwd)},
		{name: "tmp", mode: fs.ModeDir | fs.ModeSticky | 0o777},
	}
	program := entry{name: name, mode: 0o755, size: info.Size(), open: func() (io.ReadCloser, error) { return os.Open(file) }}
	if slices.ContainsFunc(entries, func(e entry) bool { return e.name == name }) {
		return fail(fmt.Errorf("a program cannot be named %q in an image that has a folder of that name", name))
	}
	img, err := build(ref, append(entries, program), opts)
	if err != nil {
		return fail(err)
	}
	return img, nil
}

// FromDir builds an image whose root is a copy of a folder: files, folders
// and symbolic links with their permission bits, owned by root. Anything
// else in it, such as a socket, is refused.
func FromDir(ref, dir string, opts Options) (*Image, error) {
	img, err := FromFS(ref, os.DirFS(dir), opts)
	if err != nil {
		return nil, fmt.Errorf("folder %s: %w", dir, err)
	}
	return img, nil
}

// FromFS is FromDir for a file system, such as an embed.FS. Symbolic links
// need it to be a [fs.ReadLinkFS].
func FromFS(ref string, fsys fs.FS, opts Options) (*Image, error) {
	fail := func(err error) (*Image, error) { return nil, fmt.Errorf("build image %q: %w", ref, err) }
	if opts.Platform == "" {
		opts.Platform = "linux/" + goruntime.GOARCH
	}
	var entries []entry
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := entry{name: name, mode: info.Mode()}
		switch info.Mode().Type() {
		case 0:
			e.size = info.Size()
			e.open = func() (io.ReadCloser, error) { return fsys.Open(name) }
		case fs.ModeDir:
		case fs.ModeSymlink:
			if e.link, err = fs.ReadLink(fsys, name); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s is a %v: want a file, folder or symbolic link", name, info.Mode().Type())
		}
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return fail(err)
	}
	img, err := build(ref, entries, opts)
	if err != nil {
		return fail(err)
	}
	return img, nil
}

// staticPlatform reads from an ELF header what a program runs on.
func staticPlatform(file string) (string, error) {
	f, err := elf.Open(file)
	if err != nil {
		var format *elf.FormatError
		if errors.As(err, &format) || errors.Is(err, io.EOF) {
			return "", fmt.Errorf("it is not a program for Linux (no ELF file): build it with GOOS=linux CGO_ENABLED=0")
		}
		return "", err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", errors.New("it needs a dynamic linker, which the image will not have: build it with CGO_ENABLED=0")
		}
	}
	arch, ok := map[elf.Machine]string{
		elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64", elf.EM_386: "386", elf.EM_ARM: "arm",
		elf.EM_RISCV: "riscv64", elf.EM_S390: "s390x", elf.EM_PPC64: "ppc64le", elf.EM_LOONGARCH: "loong64",
	}[f.Machine]
	if !ok {
		return "", fmt.Errorf("its machine %v is not known", f.Machine)
	}
	return "linux/" + arch, nil
}

// The media types of the OCI image-spec that are built or checked here.
const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type config struct {
	Created      *time.Time `json:"created,omitempty"`
	Architecture string     `json:"architecture"`
	OS           string     `json:"os"`
	Config       struct {
		User       string              `json:"User,omitempty"`
		Env        []string            `json:"Env,omitempty"`
		Entrypoint []string            `json:"Entrypoint,omitempty"`
		Cmd        []string            `json:"Cmd,omitempty"`
		Volumes    map[string]struct{} `json:"Volumes,omitempty"`
		WorkingDir string              `json:"WorkingDir,omitempty"`
		Labels     map[string]string   `json:"Labels,omitempty"`
		StopSignal string              `json:"StopSignal,omitempty"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

func build(ref string, entries []entry, opts Options) (*Image, error) {
	if ref == "" {
		return nil, errors.New("the reference is empty: want a name such as myapp/web:1")
	}
	layer, err := tarStream(entries)
	if err != nil {
		return nil, err
	}
	// The layer is not compressed: it is read once, on the same machine, and
	// its digest then is its diff ID.
	layerDigest, err := layer.digest()
	if err != nil {
		return nil, err
	}
	var c config
	var arch string
	if c.OS, arch = path.Split(opts.Platform); c.OS != "linux/" || arch == "" {
		return nil, fmt.Errorf("platform %q: want linux/ and an architecture", opts.Platform)
	}
	c.OS, c.Architecture = "linux", arch
	if !opts.Created.IsZero() {
		created := opts.Created.UTC()
		c.Created = &created
	}
	c.Config.User, c.Config.Env, c.Config.Entrypoint, c.Config.Cmd = opts.User, opts.Env, opts.Entrypoint, opts.Command
	c.Config.WorkingDir, c.Config.Labels, c.Config.StopSignal = opts.Dir, opts.Labels, opts.StopSignal
	for _, v := range opts.Volumes {
		if c.Config.Volumes == nil {
			c.Config.Volumes = map[string]struct{}{}
		}
		c.Config.Volumes[v] = struct{}{}
	}
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []string{layerDigest}
	configText, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	manifestText, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     mediaManifest,
		"config":        descriptor{MediaType: mediaConfig, Digest: digestOf(configText), Size: int64(len(configText))},
		"layers":        []descriptor{{MediaType: mediaLayer, Digest: layerDigest, Size: layer.size()}},
	})
	if err != nil {
		return nil, err
	}
	indexText, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     mediaIndex,
		"manifests": []descriptor{{
			MediaType: mediaManifest, Digest: digestOf(manifestText), Size: int64(len(manifestText)),
			Annotations: map[string]string{
				// The first is containerd's, for a full name; the second is
				// the specification's.
				"io.containerd.image.name":          ref,
				"org.opencontainers.image.ref.name": ref,
			},
		}},
	})
	if err != nil {
		return nil, err
	}
	archive, err := tarStream([]entry{
		{name: "oci-layout", mode: 0o644, data: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{name: "index.json", mode: 0o644, data: indexText},
		{name: "blobs", mode: fs.ModeDir | 0o755},
		{name: "blobs/sha256", mode: fs.ModeDir | 0o755},
		{name: blobPath(digestOf(manifestText)), mode: 0o644, data: manifestText},
		{name: blobPath(digestOf(configText)), mode: 0o644, data: configText},
		{name: blobPath(layerDigest), mode: 0o644, size: layer.size(), open: func() (io.ReadCloser, error) { return layer.reader(), nil }},
	})
	if err != nil {
		return nil, err
	}
	return &Image{ref: ref, digest: digestOf(manifestText), platform: opts.Platform, archive: archive}, nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func blobPath(digest string) string {
	_, hexDigits, _ := bytes.Cut([]byte(digest), []byte(":"))
	return "blobs/sha256/" + string(hexDigits)
}
