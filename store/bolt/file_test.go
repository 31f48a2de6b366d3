package bolt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/bolt"
)

// fill makes a store file with some content and returns it.
func fill(t *testing.T) (path string, content store.Snapshot) {
	t.Helper()
	ctx := context.Background()
	path = filepath.Join(t.TempDir(), "state.db")
	s, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		if _, err := s.Commit(ctx, store.Txn{Writes: []store.Write{
			store.Put(fmt.Sprintf("/k/%d", i), bytes.Repeat([]byte{byte(i)}, i)),
			store.Delete(fmt.Sprintf("/k/%d", i-50)),
		}}); err != nil {
			t.Fatal(err)
		}
	}
	content, err = s.List(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func update(t *testing.T, path string, change func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(change), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	write := func(content string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	in := func(bucket string, change func(*bbolt.Bucket) error) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			good, _ := fill(t)
			update(t, good, func(tx *bbolt.Tx) error { return change(tx.Bucket([]byte(bucket))) })
			if err := os.Rename(good, path); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name string
		make func(t *testing.T, path string)
		want error
	}{
		{"text", write("this is my diary, do not touch"), bolt.ErrForeign},
		{"long text", write(string(bytes.Repeat([]byte("this is my diary "), 10_000))), bolt.ErrForeign},
		{"empty", write(""), bolt.ErrForeign},
		{"folder", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, bolt.ErrForeign},
		{"another program's bbolt", func(t *testing.T, path string) {
			update(t, path, func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("theirs")); return err })
		}, bolt.ErrForeign},
		{"newer format", in("orchestrate.store", func(b *bbolt.Bucket) error { return b.Put([]byte("format"), []byte("2")) }), bolt.ErrNewer},
		{"no format", in("orchestrate.store", func(b *bbolt.Bucket) error { return b.Delete([]byte("format")) }), bolt.ErrCorrupt},
		{"no header", in("orchestrate.store", func(b *bbolt.Bucket) error { return b.Delete([]byte("header")) }), bolt.ErrCorrupt},
		{"header from the past", func(t *testing.T, path string) {
			var header []byte
			for i := range 2 { // the same key twice, so that only the revision differs
				s, err := bolt.Open(path, bolt.Options{})
				if err != nil {
					t.Fatal(err)
				}
				_, err = s.Commit(context.Background(), store.Txn{Writes: []store.Write{store.Put("/k", nil)}})
				if err := errors.Join(err, s.Close()); err != nil {
					t.Fatal(err)
				}
				update(t, path, func(tx *bbolt.Tx) error {
					meta := tx.Bucket([]byte("orchestrate.store"))
					if i == 0 {
						header = bytes.Clone(meta.Get([]byte("header")))
						return nil
					}
					return meta.Put([]byte("header"), header)
				})
			}
		}, bolt.ErrCorrupt},
		{"lost item", in("items", func(b *bbolt.Bucket) error { return b.Delete([]byte("/k/170")) }), bolt.ErrCorrupt},
		{"item under another key", in("items", func(b *bbolt.Bucket) error {
			record := bytes.Clone(b.Get([]byte("/k/170")))
			return errors.Join(b.Delete([]byte("/k/170")), b.Put([]byte("/k/x"), record))
		}), bolt.ErrCorrupt},
		{"rubbish item", in("items", func(b *bbolt.Bucket) error { return b.Put([]byte("/k/170"), []byte("x")) }), bolt.ErrCorrupt},
		{"locked", func(t *testing.T, path string) { open(t, path) }, bolt.ErrLocked},
		{"no folder", func(t *testing.T, path string) {
			if err := os.RemoveAll(filepath.Dir(path)); err != nil {
				t.Fatal(err)
			}
		}, fs.ErrNotExist},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			c.make(t, path)
			before, _ := os.ReadFile(path)
			s, err := bolt.Open(path, bolt.Options{})
			if err == nil {
				_ = s.Close()
			}
			if !errors.Is(err, c.want) {
				t.Fatalf("Open: %v, want %v", err, c.want)
			}
			var file *bolt.FileError
			if errors.As(err, &file) && file.Path != path {
				t.Errorf("error is about %q, want %q", file.Path, path)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Errorf("Open changed the file that it refused")
			}
		})
	}
}

// TestOpenDamaged opens copies of a file with one byte changed or the end cut
// off. It must tell, or show what was stored; never crash or make things up.
func TestOpenDamaged(t *testing.T) {
	path, want := fill(t)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(damage string, content []byte) (refused bool) {
		copied := filepath.Join(t.TempDir(), "state.db")
		if err := os.WriteFile(copied, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := bolt.Open(copied, bolt.Options{})
		if err != nil {
			var file *bolt.FileError
			if !errors.As(err, &file) {
				t.Errorf("%s: %v, want a *FileError", damage, err)
			}
			return true
		}
		defer func() { _ = s.Close() }()
		got, err := s.List(context.Background(), "")
		if err != nil {
			t.Fatalf("%s: %v", damage, err)
		}
		// bbolt keeps the state before the last commit too, and falls back to
		// it when the newest meta page is damaged. That is a whole state.
		if got.Revision == want.Revision && fmt.Sprint(got) != fmt.Sprint(want) || got.Revision < want.Revision-1 {
			t.Errorf("%s: opened at revision %d with %d items, want what was stored at %d with %d, or an error", damage, got.Revision, len(got.Items), want.Revision, len(want.Items))
		}
		return false
	}
	random := rand.New(rand.NewPCG(1, 2))
	refused := 0
	const flips = 400
	for range flips {
		content, at := bytes.Clone(good), random.IntN(len(good))
		content[at] ^= byte(1 + random.IntN(255))
		if try(fmt.Sprintf("byte %d changed", at), content) {
			refused++
		}
	}
	for size := 0; size < len(good); size += 1024 {
		try(fmt.Sprintf("cut to %d bytes", size), good[:size])
	}
	t.Logf("%d of %d changed bytes were in use and noticed", refused, flips)
	if refused == 0 {
		t.Errorf("no damage was noticed")
	}
}
