package bolt

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/orchestrate-go/orchestrate/store"
)

func FuzzDecodeRecord(f *testing.F) {
	item := store.Item{Key: "/a", Value: []byte("value"), Created: 3, Revision: 300, Lease: "7"}
	f.Add("/a", encodeRecord(&item))
	f.Add("/a", []byte{})
	f.Add("/a", []byte{1, 2, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0, 0, 0})
	f.Add("/a", []byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 1, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, key string, record []byte) {
		if _, err := decodeRecord(key, record); err == nil && len(record) < 7 {
			t.Errorf("%d bytes were decoded, the shortest record has 7", len(record))
		}
		// Behind the checksum is where decoding happens, so make it right.
		if len(record) >= 4 {
			body := record[:len(record)-4]
			record = binary.LittleEndian.AppendUint32(bytes.Clone(body), checksum(key, body))
		}
		item, err := decodeRecord(key, record)
		if err != nil {
			return
		}
		if item.Key != key || item.Created < 1 || item.Revision < item.Created {
			t.Fatalf("decoded %+v from a record of %q, which cannot have been stored", item, key)
		}
		again, err := decodeRecord(key, encodeRecord(&item))
		if err != nil || again.Created != item.Created || again.Revision != item.Revision || again.Lease != item.Lease || !bytes.Equal(again.Value, item.Value) {
			t.Fatalf("%+v was encoded and decoded to %+v, %v", item, again, err)
		}
	})
}

// TestRecordDetects changes every bit of a record, which must be noticed.
func TestRecordDetects(t *testing.T) {
	item := store.Item{Key: "/tasks/n1/web.1", Value: []byte("some value"), Created: 3, Revision: 300, Lease: "abc-7"}
	record := encodeRecord(&item)
	if got, err := decodeRecord(item.Key, record); err != nil || string(got.Value) != "some value" || got.Lease != "abc-7" {
		t.Fatalf("decoded %+v, %v; want %+v", got, err, item)
	}
	for bit := range 8 * len(record) {
		changed := bytes.Clone(record)
		changed[bit/8] ^= 1 << (bit % 8)
		if got, err := decodeRecord(item.Key, changed); err == nil {
			t.Errorf("with bit %d changed it decodes to %+v, want an error", bit, got)
		}
	}
	for n := range record {
		if got, err := decodeRecord(item.Key, record[:n]); err == nil {
			t.Errorf("cut to %d bytes it decodes to %+v, want an error", n, got)
		}
	}
}

func FuzzDecodeHeader(f *testing.F) {
	f.Add(encodeHeader(7, 3))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, header []byte) {
		if len(header) >= 4 {
			body := header[:len(header)-4]
			header = binary.LittleEndian.AppendUint32(bytes.Clone(body), checksum(string(headerKey), body))
		}
		revision, items, err := decodeHeader(header)
		if err != nil {
			return
		}
		if revision < 0 || items < 0 || !bytes.Equal(encodeHeader(revision, items), header) {
			t.Fatalf("decoded revision %d and %d items from %x, which cannot have been stored", revision, items, header)
		}
	})
}
