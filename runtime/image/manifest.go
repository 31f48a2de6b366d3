package image

import (
	"encoding/json"
	"path"
	"regexp"
	"slices"
	"strings"
)

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Docker's names for what OCI names after itself; layer types may also end in
// a compression.
const (
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

var layerTypes = []string{
	mediaLayer, mediaLayer + "+gzip", mediaLayer + "+zstd",
	"application/vnd.docker.image.rootfs.diff.tar",
	"application/vnd.docker.image.rootfs.diff.tar.gzip",
	"application/vnd.docker.image.rootfs.diff.tar.zstd",
}

// checkImages follows the archive's index to everything that it names.
func (c *checker) checkImages() (references []string, err error) {
	for name, f := range c.files {
		// Also what nothing refers to would be put in the store.
		if hexDigits, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && f.digest != "sha256:"+hexDigits {
			return nil, bad(name, "its content has the digest %s", f.digest)
		}
	}
	if _, ok := c.find("oci-layout"); ok {
		return c.checkLayout()
	}
	if _, ok := c.find("manifest.json"); ok {
		return c.checkDocker()
	}
	return nil, bad("", "it has neither an oci-layout nor a manifest.json: want an OCI image layout or the output of docker save")
}

func (c *checker) checkLayout() ([]string, error) {
	text, err := c.readJSONFile("oci-layout")
	if err != nil {
		return nil, err
	}
	var layout struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(text, &layout); err != nil {
		return nil, bad("oci-layout", "%w", err)
	}
	if layout.Version != "1.0.0" {
		return nil, bad("oci-layout", "its version is %q: want 1.0.0", layout.Version)
	}
	if text, err = c.readJSONFile("index.json"); err != nil {
		return nil, err
	}
	var index indexFile
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, bad("index.json", "%w", err)
	}
	if index.SchemaVersion != 2 {
		return nil, bad("index.json", "its schemaVersion is %d: want 2", index.SchemaVersion)
	}
	if len(index.Manifests) == 0 {
		return nil, bad("index.json", "it names no image")
	}
	var references []string
	for _, d := range index.Manifests {
		ref := d.Annotations["io.containerd.image.name"]
		if ref == "" {
			ref = d.Annotations["org.opencontainers.image.ref.name"]
		}
		if ref != "" && !slices.Contains(references, ref) {
			references = append(references, ref)
		}
		found, err := c.checkDescriptor("index.json", d, 1)
		if err != nil {
			return nil, err
		}
		if !found {
			return nil, bad("index.json", "nothing of the image %s is in the archive", d.Digest)
		}
	}
	return references, nil
}

type indexFile struct {
	SchemaVersion int          `json:"schemaVersion"`
	Manifests     []descriptor `json:"manifests"`
}

type manifestFile struct {
	SchemaVersion int          `json:"schemaVersion"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

// blob finds what a descriptor refers to.
func (c *checker) blob(from string, d descriptor) (name string, found bool, err error) {
	if c.blobs++; c.blobs > maxBlobs {
		return "", false, bad(from, "more than %d descriptors are referred to", maxBlobs)
	}
	if !digestForm.MatchString(d.Digest) {
		return "", false, bad(from, "the digest %q: want sha256: and 64 hexadecimal digits", d.Digest)
	}
	name = blobPath(d.Digest)
	f, ok := c.files[name]
	if ok && f.size != d.Size {
		return "", false, bad(name, "it has %d bytes, %s says %d", f.size, from, d.Size)
	}
	return name, ok, nil
}

// checkDescriptor follows a descriptor of an index. Platforms of an image may
// be left out of an archive, so what is missing is reported as not found.
func (c *checker) checkDescriptor(from string, d descriptor, depth int) (found bool, err error) {
	if depth > maxDepth {
		return false, bad(from, "indexes are nested more than %d deep", maxDepth)
	}
	name, ok, err := c.blob(from, d)
	if err != nil || !ok {
		return false, err
	}
	switch d.MediaType {
	case mediaIndex, dockerList:
		text, err := c.readJSONFile(name)
		if err != nil {
			return false, err
		}
		var index indexFile
		if err := json.Unmarshal(text, &index); err != nil {
			return false, bad(name, "%w", err)
		}
		for _, child := range index.Manifests {
			ok, err := c.checkDescriptor(name, child, depth+1)
			if err != nil {
				return false, err
			}
			found = found || ok
		}
		return found, nil
	case mediaManifest, dockerManifest:
		return true, c.checkManifest(name)
	}
	return false, bad(name, "its media type is %q: want an image index or manifest", d.MediaType)
}

func (c *checker) checkManifest(name string) error {
	text, err := c.readJSONFile(name)
	if err != nil {
		return err
	}
	var m manifestFile
	if err := json.Unmarshal(text, &m); err != nil {
		return bad(name, "%w", err)
	}
	if m.Config.MediaType != mediaConfig && m.Config.MediaType != dockerConfig {
		return bad(name, "the configuration's media type is %q: want that of an image", m.Config.MediaType)
	}
	configName, ok, err := c.blob(name, m.Config)
	if err != nil {
		return err
	}
	if !ok {
		return bad(configName, "the configuration is missing")
	}
	if slices.ContainsFunc(m.Layers, func(d descriptor) bool { return strings.Contains(d.MediaType, "in-toto") }) {
		return nil // an attestation of how an image was built: never unpacked
	}
	layers := make([]string, len(m.Layers))
	for i, d := range m.Layers {
		if !slices.Contains(layerTypes, d.MediaType) {
			return bad(name, "layer %d has the media type %q: want one of a tar archive", i, d.MediaType)
		}
		if layers[i], ok, err = c.blob(name, d); err != nil {
			return err
		}
		if !ok {
			return bad(layers[i], "the layer is missing")
		}
	}
	return c.checkConfig(configName, layers)
}

// checkConfig compares an image's configuration with its layers.
func (c *checker) checkConfig(name string, layers []string) error {
	text, err := c.readJSONFile(name)
	if err != nil {
		return err
	}
	var cfg config
	if err := json.Unmarshal(text, &cfg); err != nil {
		return bad(name, "%w", err)
	}
	if len(cfg.RootFS.DiffIDs) != len(layers) {
		return bad(name, "it has %d diff IDs for %d layers", len(cfg.RootFS.DiffIDs), len(layers))
	}
	for i, layer := range layers {
		if err := c.checkLayer(layer, cfg.RootFS.DiffIDs[i]); err != nil {
			return err
		}
	}
	return nil
}

// checkDocker checks the output of docker save: image/tarexport in moby.
func (c *checker) checkDocker() ([]string, error) {
	text, err := c.readJSONFile("manifest.json")
	if err != nil {
		return nil, err
	}
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, bad("manifest.json", "%w", err)
	}
	if len(list) == 0 {
		return nil, bad("manifest.json", "it names no image")
	}
	var references []string
	for _, m := range list {
		if c.blobs += 1 + len(m.Layers); c.blobs > maxBlobs {
			return nil, bad("manifest.json", "it refers to more than %d files", maxBlobs)
		}
		names := append([]string{m.Config}, m.Layers...)
		for i, name := range names {
			if names[i], err = cleanName(name); err != nil || path.IsAbs(name) {
				return nil, bad("manifest.json", "it refers to %q, which is not a path in the archive", name)
			}
		}
		if err := c.checkConfig(names[0], names[1:]); err != nil {
			return nil, err
		}
		references = append(references, m.RepoTags...)
	}
	return references, nil
}
