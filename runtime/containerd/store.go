//go:build linux

package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	bolt "go.etcd.io/bbolt"

	"github.com/orchestrate-go/orchestrate/runtime"
)

// namespace is the containerd namespace of everything in a store of our own,
// where one is enough: a root belongs to one Runtime.
const namespace = "orchestrate"

const snapshotter = "overlayfs"

// store is containerd's image side in this process: content, metadata,
// snapshots, put together from its packages.
type store struct {
	db     *metadata.DB // nil with a daemon's, as the next two
	bolt   *bolt.DB
	disk   snapshots.Snapshotter // below db
	snap   snapshots.Snapshotter
	client *client.Client
	log    *log.Entry
	ns     string // containerd's namespace of all in it
	views  string // prefix of the keys of our views

	mu      sync.Mutex
	bundles map[string]*bundle // unpacked images, by manifest digest
	unpack  map[string]chan struct{}
}

// bundle is an image that is unpacked and ready to start containers from.
type bundle struct {
	image  runtime.Image
	config ocispec.ImageConfig
	chain  string        // chain ID of its layers
	lower  []string      // overlay's lower folders, the top one first
	extra  []string      // overlay's further mount options
	mounts []mount.Mount // instead of lower, of another snapshotter than overlay
	users  *userTable
}

func newStore(r *Runtime, ns string) *store {
	return &store{
		log: containerdLog(r.log), ns: ns,
		views:   "orchestrate-view-" + shortHash(r.root) + "-",
		bundles: map[string]*bundle{}, unpack: map[string]chan struct{}{},
	}
}

// openStore makes or opens a store of our own.
func openStore(r *Runtime) (_ *store, err error) {
	s := newStore(r, namespace)
	dir := filepath.Join(r.root, "store")
	// The folders are named as containerd names its own: it can be started
	// on such a root, for a look inside.
	contentDir := filepath.Join(dir, "io.containerd.content.v1.content")
	metaDir := filepath.Join(dir, "io.containerd.metadata.v1.bolt")
	for _, d := range []string{contentDir, metaDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	blobs, err := local.NewStore(contentDir)
	if err != nil {
		return nil, fmt.Errorf("content store: %w", err)
	}
	if s.disk, err = overlay.NewSnapshotter(filepath.Join(dir, "io.containerd.snapshotter.v1.overlayfs")); err != nil {
		return nil, fmt.Errorf("overlay snapshotter: %w", err)
	}
	options := *bolt.DefaultOptions
	options.NoFreelistSync = true
	options.Timeout = time.Second // the root's lock is held: nobody else has it open
	if s.bolt, err = bolt.Open(filepath.Join(metaDir, "meta.db"), 0o600, &options); err != nil {
		s.disk.Close()
		return nil, fmt.Errorf("metadata: %w", err)
	}
	s.db = metadata.NewDB(s.bolt, blobs, map[string]snapshots.Snapshotter{snapshotter: s.disk})
	if err := s.db.Init(context.Background()); err != nil {
		s.close()
		return nil, fmt.Errorf("metadata: %w", err)
	}
	s.snap = s.db.Snapshotter(snapshotter)
	cs := s.db.ContentStore()
	s.client, err = client.New("", client.WithDefaultNamespace(s.ns), client.WithServices(
		client.WithContentStore(cs),
		client.WithImageStore(metadata.NewImageStore(s.db)),
		client.WithSnapshotters(map[string]snapshots.Snapshotter{snapshotter: s.snap}),
		client.WithLeasesService(metadata.NewLeaseManager(s.db)),
		client.WithDiffService(diffService{apply.NewFileSystemApplier(cs), walking.NewWalkingDiff(cs)}),
	))
	if err != nil {
		s.close()
		return nil, err
	}
	// What an interrupted pull left is collected now.
	if _, err := s.db.GarbageCollect(s.with(context.Background())); err != nil {
		s.close()
		return nil, fmt.Errorf("collect garbage: %w", err)
	}
	return s, nil
}

type diffService struct {
	diff.Applier
	diff.Comparer
}

func (s *store) close() error {
	if s.db == nil {
		return s.client.Close()
	}
	return errors.Join(s.db.Close(), s.bolt.Close(), s.disk.Close())
}

func (s *store) with(ctx context.Context) context.Context {
	return log.WithLogger(namespaces.WithNamespace(ctx, s.ns), s.log)
}

// unpacked returns the image ready for containers, unpacking its layers when
// that was not done. Concurrent calls for one image do it once.
func (s *store) unpacked(ctx context.Context, img images.Image, platform platforms.MatchComparer) (*bundle, error) {
	cs := s.client.ContentStore()
	manifest, err := images.Manifest(ctx, cs, img.Target, platform)
	if err != nil {
		if errdefs.IsNotFound(err) {
			if _, infoErr := cs.Info(ctx, img.Target.Digest); infoErr == nil {
				return nil, fmt.Errorf("%w: %w", runtime.ErrPlatform, err)
			}
		}
		return nil, err
	}
	key := manifest.Config.Digest.String()
	for {
		s.mu.Lock()
		if b := s.bundles[key]; b != nil {
			s.mu.Unlock()
			return b.named(img), nil
		}
		other := s.unpack[key]
		if other == nil {
			break
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	done := make(chan struct{})
	s.unpack[key] = done
	s.mu.Unlock()
	b, err := s.doUnpack(ctx, img, manifest, platform)
	s.mu.Lock()
	delete(s.unpack, key)
	if err == nil {
		s.bundles[key] = b
	}
	s.mu.Unlock()
	close(done)
	if err != nil {
		return nil, err
	}
	return b.named(img), nil
}

// named returns the bundle as it is known under one of its references.
func (b *bundle) named(img images.Image) *bundle {
	if b.image.Ref == img.Name && b.image.Digest == img.Target.Digest.String() {
		return b
	}
	c := *b
	c.image.Ref, c.image.Digest = img.Name, img.Target.Digest.String()
	return &c
}

func (s *store) doUnpack(ctx context.Context, img images.Image, manifest ocispec.Manifest, platform platforms.MatchComparer) (*bundle, error) {
	cs := s.client.ContentStore()
	raw, err := content.ReadBlob(ctx, cs, manifest.Config)
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	config, err := parseConfig(raw)
	if err != nil {
		return nil, err
	}
	// The client compares platforms for the manifests of an index alone.
	if config.Architecture != "" && !platform.Match(config.Platform) {
		return nil, fmt.Errorf("%w: it is for %s", runtime.ErrPlatform, platforms.Format(config.Platform))
	}
	if len(manifest.Layers) != len(config.RootFS.DiffIDs) {
		return nil, fmt.Errorf("the image has %d layers and %d diff IDs", len(manifest.Layers), len(config.RootFS.DiffIDs))
	}
	layers := make([]rootfs.Layer, len(manifest.Layers))
	size := manifest.Config.Size
	for i, l := range manifest.Layers {
		size += l.Size
		layers[i] = rootfs.Layer{
			Blob: l,
			Diff: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: config.RootFS.DiffIDs[i]},
		}
	}
	var chain digest.Digest
	if len(layers) > 0 {
		// The lease keeps half of it from the collector.
		lctx, done, err := s.client.WithLease(ctx)
		if err != nil {
			return nil, err
		}
		defer done(context.WithoutCancel(ctx))
		if chain, err = rootfs.ApplyLayers(lctx, layers, s.snap, s.client.DiffService()); err != nil {
			return nil, fmt.Errorf("unpack: %w", err)
		}
		if want := identity.ChainID(config.RootFS.DiffIDs); chain != want {
			return nil, fmt.Errorf("unpack: the layers have chain ID %s, want %s", chain, want)
		}
	}
	b := &bundle{
		image: runtime.Image{
			Ref: img.Name, Digest: img.Target.Digest.String(), Size: size,
			Entrypoint: config.Config.Entrypoint, Command: config.Config.Cmd, Env: config.Config.Env,
			Dir: config.Config.WorkingDir, User: config.Config.User, StopSignal: config.Config.StopSignal,
			Labels:   config.Config.Labels,
			Platform: platforms.Format(platforms.Normalize(config.Platform)),
		},
		config: config.Config, chain: chain.String(), users: &userTable{known: map[string]specs.User{}},
	}
	for v := range config.Config.Volumes {
		b.image.Volumes = append(b.image.Volumes, v)
	}
	slices.Sort(b.image.Volumes)
	return b, s.mountOptions(ctx, b)
}

// mountOptions asks the snapshotter once how the image is mounted, through a
// read-only view that stays for as long as the image may be used. The
// writable layer of a container is then two folders and no transaction.
func (s *store) mountOptions(ctx context.Context, b *bundle) error {
	if b.chain == "" {
		return nil
	}
	key := s.views + b.chain
	mounts, err := s.snap.Mounts(ctx, key)
	if errdefs.IsNotFound(err) {
		mounts, err = s.snap.View(ctx, key, b.chain, snapshots.WithLabels(map[string]string{
			"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339),
		}))
	}
	if err != nil {
		return fmt.Errorf("view of the image: %w", err)
	}
	if len(mounts) != 1 {
		b.mounts = mounts
		return nil
	}
	switch m := mounts[0]; m.Type {
	case "bind":
		b.lower = []string{m.Source}
	case "overlay":
		for _, o := range m.Options {
			if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
				b.lower = strings.Split(dirs, ":")
			} else {
				b.extra = append(b.extra, o)
			}
		}
	default:
		b.mounts = mounts // to be mounted when a file of it is looked for
	}
	return nil
}

// drop forgets that an image is unpacked.
func (s *store) drop(chain string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, b := range s.bundles {
		if b.chain == chain {
			delete(s.bundles, key)
		}
	}
}

// orphaned reports whether a container's layers may no longer be needed: its
// reference is gone or means another image.
func (s *store) orphaned(ctx context.Context, ref, chain string) bool {
	b, err := s.lookup(ctx, ref)
	return errors.Is(err, runtime.ErrImageNotFound) || err == nil && b.chain != chain
}

// Pulled and imported images are only kept while something needs them: forget
// removes the views of images that neither a reference nor a container uses
// and collects what that leaves.
func (s *store) forget(ctx context.Context, inUse map[string]bool) error {
	ctx = s.with(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	list, err := s.client.ImageService().List(ctx)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, img := range list {
		ids, err := img.RootFS(ctx, s.client.ContentStore(), s.platform(img))
		if err == nil {
			keep[identity.ChainID(ids).String()] = true
		}
	}
	var gone []string
	err = s.snap.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		chain, ok := strings.CutPrefix(info.Name, s.views)
		if ok && !keep[chain] && !inUse[chain] {
			gone = append(gone, chain)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, chain := range gone {
		for key, b := range s.bundles {
			if b.chain == chain {
				delete(s.bundles, key)
			}
		}
		if err := s.snap.Remove(ctx, s.views+chain); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	if s.db == nil {
		return nil // it collects by itself
	}
	_, err = s.db.GarbageCollect(ctx)
	return err
}
