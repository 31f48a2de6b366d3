//go:build linux

package containerd

import (
	"os"
	"path/filepath"
	"testing"
)

// Of a record that was being written when its process was killed, at whatever
// byte, the one before counts, and the next one after.
func TestRecordIsCutOff(t *testing.T) {
	r := &Runtime{state: t.TempDir()}
	if err := os.MkdirAll(r.bundle("a"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.bundle("a"), recordFile)
	if err := r.save(record{ID: "a", PID: 1}); err != nil {
		t.Fatal(err)
	}
	one, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.save(record{ID: "a", PID: 2}); err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(two) + 1 {
		if err := os.WriteFile(path, two[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		rec, err := r.saved("a")
		switch {
		case n < len(one):
			if err == nil {
				t.Fatalf("%d of %d bytes of the only record: got %+v, want an error", n, len(one), rec)
			}
		case n < len(two):
			if err != nil || rec.PID != 1 {
				t.Fatalf("%d of %d bytes: got %+v, %v; want the first record", n, len(two), rec, err)
			}
		case err != nil || rec.PID != 2:
			t.Fatalf("whole: got %+v, %v; want the second record", rec, err)
		}
		if err := r.save(record{ID: "a", PID: 3}); err != nil {
			t.Fatal(err)
		}
		if rec, err := r.saved("a"); err != nil || rec.PID != 3 {
			t.Fatalf("after %d bytes that were cut off: got %+v, %v; want the third record", n, rec, err)
		}
	}
}
