//go:build linux

package fastpath

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The object is built by hand, so that nobody needs a compiler for BPF; it must not
// be older than its source.
func TestObjectIsOfTheSource(t *testing.T) {
	source, err := os.ReadFile("fastpath.c")
	check(t, err)
	file, err := elf.NewFile(bytes.NewReader(object))
	check(t, err)
	section := file.Section("source")
	if section == nil {
		t.Fatal("fastpath.o does not say of which source it is")
	}
	of, err := section.Data()
	check(t, err)
	sum := sha256.Sum256(source)
	if got, want := string(bytes.TrimRight(of, "\x00")), hex.EncodeToString(sum[:]); got != want {
		t.Errorf("fastpath.o is of a source with the hash %s, and fastpath.c has %s: run generate.sh", got, want)
	}
	// In the information for debuggers, as the compiler was told to.
	if !bytes.Contains(object, []byte("\x00./fastpath.c\x00")) {
		t.Error("fastpath.o tells in which folder it was built, so that it is another in each")
	}
}

func TestTypesAreThoseOfTheMaps(t *testing.T) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	check(t, err)
	for name, want := range map[string]struct{ key, value any }{
		"flows":  {key{}, flow{}},
		"sent":   {key{}, uint32(0)},
		"ends":   {end{}, node{}},
		"passed": {uint32(0), uint64(0)},
	} {
		m := spec.Maps[name]
		if m == nil {
			t.Errorf("there is no map %s", name)
			continue
		}
		if k, v := binary.Size(want.key), binary.Size(want.value); m.KeySize != uint32(k) || m.ValueSize != uint32(v) {
			t.Errorf("map %s has keys of %d bytes and values of %d, and the Go types have %d and %d", name, m.KeySize, m.ValueSize, k, v)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOldKernels(t *testing.T) {
	for release, fit := range map[string]bool{
		"5.13.0": true, "5.15.0-91-generic": true, "6.1.0-18-amd64": true, "10.0": true,
		"5.12.19": false, "5.4.0-42": false, "4.18.0-553.el8": false,
	} {
		if err := old(release); fit != (err == nil) || err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
			t.Errorf("Linux %s: %v, want it fit: %v", release, err, fit)
		}
	}
	if err := old("next"); err == nil {
		t.Error("a release without a number is taken")
	}
}
