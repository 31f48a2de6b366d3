package embed

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"

	"github.com/orchestrate-go/orchestrate/store/etcd/internal/zapslog"
)

// ErrSnapshot says that a file is no snapshot, or not a whole one.
var ErrSnapshot = errors.New("is not a whole snapshot")

// Snapshot writes the whole state to w, as etcdctl's "snapshot save" does: what
// was committed on this member when it began, then a checksum. It returns how
// many bytes that were.
func (m *Member) Snapshot(ctx context.Context, w io.Writer) (int64, error) {
	r, err := m.admin.Snapshot(m.root(ctx))
	if err != nil {
		return 0, fmt.Errorf("snapshot of etcd member %s: %w", m.opts.Name, err)
	}
	defer r.Close()
	n, err := io.Copy(w, r)
	if err != nil {
		return n, fmt.Errorf("snapshot of etcd member %s: %w", m.opts.Name, err)
	}
	// A snapshot ends with the checksum of all before it, which begins at a
	// multiple of 512: without one it was cut off.
	if n%512 != sha256.Size {
		return n, fmt.Errorf("snapshot of etcd member %s: %d bytes: %w", m.opts.Name, n, ErrSnapshot)
	}
	return n, nil
}

// restoreBump is added to the snapshot's revision by Restore. It is more than a
// cluster commits between two snapshots.
const restoreBump = 1_000_000_000

// Restore makes, in opts.Dir, a member of a new cluster out of the snapshot in
// the file at path; opts.Members are its members, each of which must be restored
// from the same file. The folder must be empty or missing. Start it with the
// same options. The error is an [*OptionError], [ErrSnapshot], or the file
// system's.
func Restore(path string, opts Options) (err error) {
	opts = opts.withDefaults()
	if opts.Join != nil {
		return &OptionError{"Join", "is for a cluster that runs; a restored one is new and has Members"}
	}
	config, err := opts.config()
	if err != nil {
		return err
	}
	if err := checkSnapshot(path); err != nil {
		return fmt.Errorf("restore %s: %w", path, err)
	}
	if entries, err := os.ReadDir(config.Dir); err == nil && len(entries) > 0 {
		return &OptionError{"Dir", fmt.Sprintf("%s is not empty; restore into a new folder", config.Dir)}
	}
	result := make(chan error, 1)
	fatal := make(chan string, 1)
	go func() { // see Member.start
		defer close(result)
		logger := zapslog.New(opts.Logger.With("member", opts.Name), func(message string) { fatal <- message })
		result <- snapshot.NewV3(logger).Restore(snapshot.RestoreConfig{
			SnapshotPath: path, Name: config.Name, OutputDataDir: config.Dir,
			PeerURLs:       []string{config.AdvertisePeerUrls[0].String()},
			InitialCluster: config.InitialCluster, InitialClusterToken: config.InitialClusterToken,
			RevisionBump: restoreBump, MarkCompacted: true,
		})
	}()
	err, returned := <-result
	if !returned {
		err = errors.New(<-fatal)
	}
	if err != nil {
		return fmt.Errorf("restore %s: %w", path, err)
	}
	return nil
}

// checkSnapshot compares a snapshot with its checksum, before anything is made
// of it.
func checkSnapshot(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if size%512 != sha256.Size || size == sha256.Size {
		return fmt.Errorf("%d bytes: %w", size, ErrSnapshot)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := io.CopyN(sum, f, size-sha256.Size); err != nil {
		return err
	}
	want, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if string(want) != string(sum.Sum(nil)) {
		return fmt.Errorf("its checksum is not that of its content: %w", ErrSnapshot)
	}
	return nil
}
