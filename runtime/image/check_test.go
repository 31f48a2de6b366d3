package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

// tarOf writes headers and contents as a tar archive.
func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		h.Mode = 0o644
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.data))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

type entry struct {
	header tar.Header
	data   []byte
}

func file(name string, data []byte) entry { return entry{tar.Header{Name: name}, data} }
func link(name, target string, kind byte) entry {
	return entry{tar.Header{Name: name, Linkname: target, Typeflag: kind}, nil}
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type m = map[string]any

// layout makes an OCI layout around one layer; change may spoil its parts
// before they are put together, and extra is added.
type layout struct {
	layer     []byte
	layerType string
	diffID    string
	manifest  func(m)
	index     func(m)
	version   string
	extra     []entry
	blobs     func(map[string][]byte)
}

func (l layout) bytes(t testing.TB) []byte {
	t.Helper()
	if l.layerType == "" {
		l.layerType = "application/vnd.oci.image.layer.v1.tar"
	}
	if l.diffID == "" {
		l.diffID = "sha256:" + sum(l.layer)
	}
	if l.version == "" {
		l.version = "1.0.0"
	}
	config := toJSON(t, m{"architecture": "amd64", "os": "linux", "config": m{}, "rootfs": m{"type": "layers", "diff_ids": []string{l.diffID}}})
	manifest := m{
		"schemaVersion": 2,
		"config":        m{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:" + sum(config), "size": len(config)},
		"layers":        []m{{"mediaType": l.layerType, "digest": "sha256:" + sum(l.layer), "size": len(l.layer)}},
	}
	if l.manifest != nil {
		l.manifest(manifest)
	}
	manifestText := toJSON(t, manifest)
	index := m{"schemaVersion": 2, "manifests": []m{{
		"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + sum(manifestText), "size": len(manifestText),
		"annotations": m{"org.opencontainers.image.ref.name": "x:1"},
	}}}
	if l.index != nil {
		l.index(index)
	}
	blobs := map[string][]byte{sum(config): config, sum(manifestText): manifestText, sum(l.layer): l.layer}
	if l.blobs != nil {
		l.blobs(blobs)
	}
	entries := []entry{
		file("oci-layout", toJSON(t, m{"imageLayoutVersion": l.version})),
		file("index.json", toJSON(t, index)),
	}
	for name, data := range blobs {
		entries = append(entries, file("blobs/sha256/"+name, data))
	}
	return tarOf(t, append(entries, l.extra...)...)
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	w.Close()
	return buf.Bytes()
}

func check(t testing.TB, archive []byte, limits image.Limits) error {
	t.Helper()
	dir := t.TempDir()
	a, err := image.Check(t.Context(), bytes.NewReader(archive), dir, limits)
	if err == nil {
		r, rerr := a.Reader()
		if rerr != nil {
			t.Fatal(rerr)
		}
		if _, rerr := io.Copy(io.Discard, r); rerr != nil {
			t.Fatal(rerr)
		}
		if cerr := a.Close(); cerr != nil {
			t.Error(cerr)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("files are left behind: %v", left)
	}
	return err
}

func TestCheckRefuses(t *testing.T) {
	good := tarOf(t, file("a", []byte("x")))
	zeros := gz(t, tarOf(t, file("zeros", make([]byte, 70<<20))))
	for name, test := range map[string]struct {
		archive []byte
		limits  image.Limits
		want    string // part of the message
	}{
		"empty":                  {nil, image.Limits{}, "neither"},
		"no tar":                 {[]byte(strings.Repeat("rubbish ", 200)), image.Limits{}, "tar"},
		"cut":                    {layout{layer: good}.bytes(t)[:1200], image.Limits{}, "tar"},
		"broken gzip":            {append([]byte("\x1f\x8b"), make([]byte, 50)...), image.Limits{}, "decompress"},
		"zstd unsupported":       {[]byte("\x28\xb5\x2f\xfd...."), image.Limits{}, "zstd"},
		"no image in it":         {good, image.Limits{}, "neither"},
		"path climbs":            {layout{layer: good, extra: []entry{file("../x", nil)}}.bytes(t), image.Limits{}, ".."},
		"path climbs inside":     {layout{layer: good, extra: []entry{file("a/../../x", nil)}}.bytes(t), image.Limits{}, ".."},
		"path absolute":          {layout{layer: good, extra: []entry{file("/etc/x", nil)}}.bytes(t), image.Limits{}, "absolute"},
		"link absolute":          {layout{layer: good, extra: []entry{link("l", "/etc/passwd", tar.TypeSymlink)}}.bytes(t), image.Limits{}, "out of the archive"},
		"link climbs":            {layout{layer: good, extra: []entry{link("l", "../../etc", tar.TypeSymlink)}}.bytes(t), image.Limits{}, "out of the archive"},
		"hard link":              {layout{layer: good, extra: []entry{link("l", "oci-layout", tar.TypeLink)}}.bytes(t), image.Limits{}, "type"},
		"fifo":                   {layout{layer: good, extra: []entry{link("l", "", tar.TypeFifo)}}.bytes(t), image.Limits{}, "type"},
		"entry twice":            {layout{layer: good, extra: []entry{file("index.json", []byte("{}"))}}.bytes(t), image.Limits{}, "twice"},
		"too many entries":       {layout{layer: good}.bytes(t), image.Limits{Entries: 3}, "entries"},
		"too large":              {layout{layer: good}.bytes(t), image.Limits{Bytes: 2000}, "bytes"},
		"layout version":         {layout{layer: good, version: "9"}.bytes(t), image.Limits{}, "version"},
		"index is no JSON":       {tarOf(t, file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)), file("index.json", []byte("["))), image.Limits{}, "JSON"},
		"no index":               {tarOf(t, file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))), image.Limits{}, "missing"},
		"index without images":   {layout{layer: good, index: func(i m) { i["manifests"] = []m{} }}.bytes(t), image.Limits{}, "no image"},
		"index schema":           {layout{layer: good, index: func(i m) { i["schemaVersion"] = 1 }}.bytes(t), image.Limits{}, "schemaVersion"},
		"manifest's media type":  {layout{layer: good, index: func(i m) { i["manifests"].([]m)[0]["mediaType"] = "text/html" }}.bytes(t), image.Limits{}, "media type"},
		"manifest missing":       {layout{layer: good, index: func(i m) { i["manifests"].([]m)[0]["digest"] = "sha256:" + sum(nil) }}.bytes(t), image.Limits{}, "nothing of the image"},
		"manifest's size":        {layout{layer: good, index: func(i m) { i["manifests"].([]m)[0]["size"] = 1 }}.bytes(t), image.Limits{}, "bytes"},
		"digest climbs":          {layout{layer: good, index: func(i m) { i["manifests"].([]m)[0]["digest"] = "sha256:../../../../etc/passwd" }}.bytes(t), image.Limits{}, "digest"},
		"digest's algorithm":     {layout{layer: good, index: func(i m) { i["manifests"].([]m)[0]["digest"] = "md5:00" }}.bytes(t), image.Limits{}, "digest"},
		"config's media type":    {layout{layer: good, manifest: func(i m) { i["config"].(m)["mediaType"] = "application/json" }}.bytes(t), image.Limits{}, "media type"},
		"layer's media type":     {layout{layer: good, layerType: "application/zip"}.bytes(t), image.Limits{}, "media type"},
		"layer missing":          {layout{layer: good, blobs: func(b map[string][]byte) { delete(b, sum(good)) }}.bytes(t), image.Limits{}, "missing"},
		"layer's size":           {layout{layer: good, manifest: func(i m) { i["layers"].([]m)[0]["size"] = 1 << 40 }}.bytes(t), image.Limits{}, "bytes"},
		"blob's digest":          {layout{layer: good, blobs: func(b map[string][]byte) { b[sum(good)] = bytes.ToUpper(good) }}.bytes(t), image.Limits{}, "digest"},
		"unreferenced blob":      {layout{layer: good, extra: []entry{file("blobs/sha256/"+sum([]byte("x")), []byte("y"))}}.bytes(t), image.Limits{}, "digest"},
		"diff ID":                {layout{layer: good, diffID: "sha256:" + sum(nil)}.bytes(t), image.Limits{}, "diff ID"},
		"layer is no tar":        {layout{layer: []byte(strings.Repeat("rubbish ", 200))}.bytes(t), image.Limits{}, "layer"},
		"layer's path climbs":    {layout{layer: tarOf(t, file("../../etc/passwd", nil))}.bytes(t), image.Limits{}, ".."},
		"layer's hard link":      {layout{layer: tarOf(t, link("a", "../../etc/passwd", tar.TypeLink))}.bytes(t), image.Limits{}, "hard link"},
		"layer through a link":   {layout{layer: tarOf(t, link("a", "/etc", tar.TypeSymlink), file("a/passwd", nil))}.bytes(t), image.Limits{}, "through the link"},
		"layer through climbing": {layout{layer: tarOf(t, link("d/a", "../../etc", tar.TypeSymlink), file("d/a/b/passwd", nil))}.bytes(t), image.Limits{}, "through the link"},
		"hard link through link": {layout{layer: tarOf(t, link("a", "/etc", tar.TypeSymlink), link("b", "a/shadow", tar.TypeLink))}.bytes(t), image.Limits{}, "through the link"},
		"layer's entries":        {layout{layer: tarOf(t, file("a", nil), file("b", nil), file("c", nil), file("d", nil), file("e", nil), file("f", nil))}.bytes(t), image.Limits{Entries: 5}, "entries"},
		"layer bomb":             {layout{layer: zeros, layerType: "application/vnd.oci.image.layer.v1.tar+gzip"}.bytes(t), image.Limits{}, "times larger"},
		"archive bomb":           {zeros, image.Limits{}, "times larger"},
		"layer too large":        {layout{layer: good}.bytes(t), image.Limits{Unpacked: 600}, "more than 600 bytes"},
		"docker without images":  {tarOf(t, file("manifest.json", []byte("[]"))), image.Limits{}, "no image"},
		"docker climbs":          {tarOf(t, file("manifest.json", []byte(`[{"Config":"../../etc/passwd"}]`))), image.Limits{}, "not a path"},
		"docker config missing":  {tarOf(t, file("manifest.json", []byte(`[{"Config":"c.json"}]`))), image.Limits{}, "missing"},
		"docker layers":          {tarOf(t, file("manifest.json", []byte(`[{"Config":"c.json","Layers":["a","b"]}]`)), file("c.json", []byte(`{}`))), image.Limits{}, "diff IDs"},
	} {
		t.Run(name, func(t *testing.T) {
			err := check(t, test.archive, test.limits)
			var archive *runtime.ArchiveError
			if !errors.As(err, &archive) {
				t.Fatalf("got %v, want a *runtime.ArchiveError", err)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want it to say %q", err, test.want)
			}
		})
	}
}

func TestCheckAccepts(t *testing.T) {
	layer := tarOf(t,
		file("etc/hosts", []byte("x")), link("bin", "usr/bin", tar.TypeSymlink), file("bin/sh", nil),
		link("etc/mtab", "/proc/mounts", tar.TypeSymlink), link("lib/x", "../../../usr", tar.TypeSymlink),
		link("etc/h2", "etc/hosts", tar.TypeLink), file("./dot", nil), file("/abs", nil),
	)
	config := toJSON(t, m{"architecture": "amd64", "os": "linux", "rootfs": m{"diff_ids": []string{"sha256:" + sum(layer)}}})
	for name, archive := range map[string][]byte{
		"layout":           layout{layer: layer}.bytes(t),
		"compressed":       gz(t, layout{layer: layer}.bytes(t)),
		"compressed layer": layout{layer: gz(t, layer), diffID: "sha256:" + sum(layer), layerType: "application/vnd.oci.image.layer.v1.tar+gzip"}.bytes(t),
		"docker save":      tarOf(t, file("manifest.json", toJSON(t, []m{{"Config": "c.json", "Layers": []string{"l/layer.tar"}, "RepoTags": []string{"a:1"}}})), file("c.json", config), file("l/layer.tar", layer)),
		"linked layer":     tarOf(t, file("manifest.json", toJSON(t, []m{{"Config": "c.json", "Layers": []string{"k/layer.tar"}}})), file("c.json", config), file("l/layer.tar", layer), link("k/layer.tar", "../l/layer.tar", tar.TypeSymlink)),
	} {
		t.Run(name, func(t *testing.T) {
			if err := check(t, archive, image.Limits{}); err != nil {
				t.Errorf("got %v, want it accepted", err)
			}
		})
	}
}

// What is built is what is checked, twice with the same digest.
func TestBuildIsDeterministic(t *testing.T) {
	fsys := fstest.MapFS{
		"app/run":    {Data: []byte("#!"), Mode: 0o755},
		"app/empty":  {},
		"etc/passwd": {Data: []byte("root:x:0:0::/:\n")},
	}
	opts := image.Options{Entrypoint: []string{"/app/run"}, Env: []string{"A=b"}, Volumes: []string{"/data", "/x"}, Labels: map[string]string{"z": "1", "a": "2"}}
	var digests []string
	for range 2 {
		img, err := image.FromFS("x:1", fsys, opts)
		if err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer
		n, err := img.WriteTo(&buf)
		if err != nil || n != img.Size() || n != int64(buf.Len()) {
			t.Fatalf("WriteTo: %d bytes, %v; Size says %d", n, err, img.Size())
		}
		if err := check(t, buf.Bytes(), image.Limits{}); err != nil {
			t.Errorf("a built image is refused: %v", err)
		}
		digests = append(digests, img.Digest(), "sha256:"+sum(buf.Bytes()))
	}
	if digests[0] != digests[2] || digests[1] != digests[3] {
		t.Errorf("two builds of the same differ: %v", digests)
	}
}

func TestFromBinaryRefuses(t *testing.T) {
	script := t.TempDir() + "/script"
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := image.FromBinary("x:1", script, image.Options{}); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("a script: got %v, want an error that says what to build", err)
	}
	if _, err := image.FromBinary("x:1", t.TempDir()+"/none", image.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: got %v, want os.ErrNotExist", err)
	}
}

func FuzzArchive(f *testing.F) {
	layer := tarOf(f, file("a", []byte("x")), link("b", "/etc", tar.TypeSymlink))
	f.Add(layout{layer: layer}.bytes(f))
	f.Add(gz(f, layout{layer: gz(f, layer), diffID: "sha256:" + sum(layer)}.bytes(f)))
	f.Add(tarOf(f, file("manifest.json", []byte(`[{"Config":"c.json","Layers":["a"]}]`)), file("c.json", []byte(`{}`))))
	f.Add([]byte{})
	limits := image.Limits{Bytes: 1 << 20, Entries: 100, Unpacked: 1 << 20}
	f.Fuzz(func(t *testing.T, archive []byte) {
		err := check(t, archive, limits)
		var refused *runtime.ArchiveError
		if err != nil && !errors.As(err, &refused) {
			t.Fatalf("got %v (%T), want the archive accepted or a *runtime.ArchiveError", err, err)
		}
	})
}

func ExampleFromFS() {
	img, err := image.FromFS("site:1", fstest.MapFS{"index.html": {Data: []byte("hello")}}, image.Options{Platform: "linux/amd64"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(img.Ref(), img.Platform(), len(img.Digest()))
	// Output: site:1 linux/amd64 71
}
