package bolt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/orchestrate-go/orchestrate/store"
)

// The file is a bbolt database with two buckets: meta holds "format" (a decimal
// number) and the header, items a record for each key.
const format = 1

var (
	metaBucket  = []byte("orchestrate.store")
	itemsBucket = []byte("items")
	formatKey   = []byte("format")
)

// state is what a file holds.
type state struct {
	revision int64
	items    []store.Item
}

// openFile opens and locks the file at path, which it makes if there is none,
// and reads it all.
func openFile(path string) (*bbolt.DB, state, error) {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := createFile(path); err != nil {
			return nil, state{}, fmt.Errorf("create store file %s: %w", path, err)
		}
	}
	db, err := openDB(path)
	if err != nil {
		return nil, state{}, err
	}
	s, err := load(db)
	if err != nil {
		_ = db.Close()
		return nil, state{}, err
	}
	removeLeftovers(path)
	return db, s, nil
}

// removeLeftovers removes what interrupted creations of the file at path left.
// The file is ours now, so they have no owner; a creation that is still on its
// way finds that its work was done for it.
func removeLeftovers(path string) {
	dir, base := filepath.Split(path)
	entries, _ := os.ReadDir(filepath.Clean(dir)) // not worth failing for
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), base+newSuffix) {
			_ = os.Remove(filepath.Join(dir, entry.Name()))
		}
	}
}

const newSuffix = ".new-"

// createFile makes the file elsewhere and links it to its place, so that at
// path there is either nothing or a whole file, whenever the process is killed.
// Linking, unlike renaming, never replaces what another process put there.
func createFile(path string) error {
	temp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+newSuffix+"*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temp.Name()) }()
	if err := temp.Close(); err != nil {
		return err
	}
	db, err := bbolt.Open(temp.Name(), 0o600, &bbolt.Options{Timeout: lockPatience})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucket(metaBucket)
		if err != nil {
			return err
		}
		if _, err := tx.CreateBucket(itemsBucket); err != nil {
			return err
		}
		if err := meta.Put(formatKey, strconv.AppendInt(nil, format, 10)); err != nil {
			return err
		}
		return meta.Put(headerKey, encodeHeader(0, 0))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Link(temp.Name(), path); err != nil {
		if _, there := os.Stat(path); there == nil {
			return nil // another process was faster
		}
		return err
	}
	return syncDir(filepath.Dir(path))
}

// lockPatience is how long to wait for the lock of a file. A process that is killed
// while it starts another leaves, for the moment from fork to exec, a child that
// holds its lock: on a busy machine that is longer than it takes to start anew.
const lockPatience = time.Second

// openDB opens a file that exists. It does not touch one that is not bbolt's.
func openDB(path string) (db *bbolt.DB, err error) {
	var file *os.File
	defer panicOnFault()()
	defer guard(path, &err, func() {
		// bbolt gave up in the middle. Closing the file ends the lock.
		if file != nil {
			_ = file.Close()
		}
	})
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("open store file: %w", err)
	} else if !info.Mode().IsRegular() {
		return nil, &FileError{Path: path, Kind: ErrForeign, Detail: "it is not a regular file"}
	} else if info.Size() == 0 {
		// bbolt would take it for a new one and write to it.
		return nil, &FileError{Path: path, Kind: ErrForeign, Detail: "it is empty; remove it to begin anew"}
	}
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:      lockPatience,
		FreelistType: bbolt.FreelistMapType,
		NoStatistics: true,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag&^os.O_CREATE, mode)
			file = f
			return f, err
		},
	})
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, bbolterrors.ErrTimeout):
		return nil, &FileError{Path: path, Kind: ErrLocked}
	case errors.Is(err, bbolterrors.ErrInvalid):
		return nil, &FileError{Path: path, Kind: ErrForeign, Detail: err.Error()}
	case errors.Is(err, bbolterrors.ErrVersionMismatch):
		return nil, &FileError{Path: path, Kind: ErrNewer, Detail: err.Error()}
	case errors.Is(err, bbolterrors.ErrChecksum):
		return nil, &FileError{Path: path, Kind: ErrCorrupt, Detail: err.Error()}
	case isSystem(err):
		return nil, fmt.Errorf("open store file %s: %w", path, err)
	default:
		return nil, corrupt(path, "%v", err)
	}
}

// isSystem says whether err comes from the operating system, rather than from
// what bbolt found in a file.
func isSystem(err error) bool {
	var path *fs.PathError
	var errno syscall.Errno
	return errors.As(err, &path) || errors.As(err, &errno)
}

// load reads and checks everything in the file.
func load(db *bbolt.DB) (s state, err error) {
	path := db.Path()
	defer panicOnFault()()
	defer guard(path, &err, func() {})
	err = db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		if meta == nil {
			return &FileError{Path: path, Kind: ErrForeign, Detail: "it is a bbolt database of another program"}
		}
		version, err := strconv.Atoi(string(meta.Get(formatKey)))
		if err != nil {
			return corrupt(path, "format: %v", err)
		}
		if version > format {
			return &FileError{Path: path, Kind: ErrNewer, Detail: fmt.Sprintf("its format is %d, this program knows up to %d", version, format)}
		}
		revision, count, err := decodeHeader(meta.Get(headerKey))
		if err != nil {
			return corrupt(path, "header: %v", err)
		}
		s.revision = revision
		items := tx.Bucket(itemsBucket)
		if items == nil {
			return corrupt(path, "it has no items")
		}
		err = items.ForEach(func(key, record []byte) error {
			item, err := decodeRecord(string(key), record)
			if err != nil {
				return corrupt(path, "item %q: %v", key, err)
			}
			if item.Revision > revision {
				return corrupt(path, "item %q is at revision %d, the file at %d", key, item.Revision, revision)
			}
			s.items = append(s.items, item)
			return nil
		})
		if err != nil {
			return err
		}
		if len(s.items) != count {
			return corrupt(path, "it has %d items, %d were stored", len(s.items), count)
		}
		return nil
	})
	return s, err
}

func corrupt(path, detail string, args ...any) error {
	return &FileError{Path: path, Kind: ErrCorrupt, Detail: fmt.Sprintf(detail, args...)}
}

// guard turns a panic of bbolt, which trusts the pages of a file, into an
// ErrCorrupt, and calls cleanup. With panicOnFault that includes the fault of
// reading beyond the end of a truncated file.
func guard(path string, err *error, cleanup func()) {
	if cause := recover(); cause != nil {
		cleanup()
		*err = corrupt(path, "%v", cause)
	}
}

// panicOnFault makes faults of the calling goroutine panic, until the returned
// function is called.
func panicOnFault() (restore func()) {
	old := debug.SetPanicOnFault(true)
	return func() { debug.SetPanicOnFault(old) }
}
