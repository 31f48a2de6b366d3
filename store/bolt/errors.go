package bolt

import (
	"errors"
	"fmt"
)

// What can be wrong with a file; the error of Open is a [*FileError] with one
// of these in it (errors.Is).
var (
	// ErrLocked says that the file is open already, in this or another process.
	ErrLocked = errors.New("is in use by another process or store")
	// ErrForeign says that the file is not one of this package. It was left as
	// it is.
	ErrForeign = errors.New("is not a store of this program")
	// ErrNewer says that a newer version of this package wrote the file.
	ErrNewer = errors.New("was written by a newer version")
	// ErrCorrupt says that the file is damaged. It was left as it is: restore
	// a copy.
	ErrCorrupt = errors.New("is damaged")
)

// FileError says why a file cannot be opened as a store.
type FileError struct {
	Path   string
	Kind   error  // ErrLocked, ErrForeign, ErrNewer or ErrCorrupt
	Detail string // what was found; may be empty
}

// Error names the file and what is wrong with it.
func (e *FileError) Error() string {
	if e.Detail == "" {
		return fmt.Sprintf("store file %s %v", e.Path, e.Kind)
	}
	return fmt.Sprintf("store file %s %v: %s", e.Path, e.Kind, e.Detail)
}

// Unwrap returns Kind.
func (e *FileError) Unwrap() error { return e.Kind }

// WriteError says that the disk refused a write. The commits that it was for
// may or may not be on the disk, and the store has stopped: open it again.
type WriteError struct {
	Path string
	Err  error // of the file system
}

// Error names the file and the file system's reason.
func (e *WriteError) Error() string {
	return fmt.Sprintf("write store file %s: %v; the store has stopped", e.Path, e.Err)
}

// Unwrap returns the file system's error.
func (e *WriteError) Unwrap() error { return e.Err }
