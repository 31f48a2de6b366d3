package bolt

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/orchestrate-go/orchestrate/store"
)

// A record is the value of an item in the file: created and revision as
// uvarints, the lease as uvarint length and bytes, then the value, then the
// CRC-32C of the key and all before it. The checksum is there because bbolt has
// none on its data pages; it covers the key so that a record cannot turn up
// under another one.

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	errRecordShort    = errors.New("record is too short")
	errRecordChecksum = errors.New("record's checksum does not match")
	errRecordRevision = errors.New("record's revisions are not in order")
)

func encodeRecord(item *store.Item) []byte {
	const overhead = 3*binary.MaxVarintLen64 + crc32.Size
	b := make([]byte, 0, overhead+len(item.Lease)+len(item.Value))
	b = binary.AppendUvarint(b, uint64(item.Created))
	b = binary.AppendUvarint(b, uint64(item.Revision))
	b = binary.AppendUvarint(b, uint64(len(item.Lease)))
	b = append(b, item.Lease...)
	b = append(b, item.Value...)
	return binary.LittleEndian.AppendUint32(b, checksum(item.Key, b))
}

// decodeRecord copies what it needs of b.
func decodeRecord(key string, b []byte) (store.Item, error) {
	if err := store.ValidateKey(key); err != nil {
		return store.Item{}, err
	}
	if len(b) < crc32.Size {
		return store.Item{}, errRecordShort
	}
	body, sum := b[:len(b)-crc32.Size], b[len(b)-crc32.Size:]
	if checksum(key, body) != binary.LittleEndian.Uint32(sum) {
		return store.Item{}, errRecordChecksum
	}
	var field [3]uint64 // created, revision, length of the lease
	for i := range field {
		v, n := binary.Uvarint(body)
		if n <= 0 {
			return store.Item{}, errRecordShort
		}
		field[i], body = v, body[n:]
	}
	created, revision, lease := int64(field[0]), int64(field[1]), field[2]
	if created <= 0 || revision < created {
		return store.Item{}, errRecordRevision
	}
	if lease > uint64(len(body)) {
		return store.Item{}, errRecordShort
	}
	item := store.Item{Key: key, Created: created, Revision: revision, Lease: store.LeaseID(body[:lease])}
	if value := body[lease:]; len(value) > 0 {
		item.Value = append([]byte(nil), value...)
	}
	return item, nil
}

func checksum(key string, body []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(key), castagnoli), castagnoli, body)
}

// The header is one record about the whole file: its revision and its number
// of items, which a lost page would make wrong.
const headerSize = 8 + 8 + crc32.Size

var headerKey = []byte("header")

func encodeHeader(revision int64, items int) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, headerSize), uint64(revision))
	b = binary.LittleEndian.AppendUint64(b, uint64(items))
	return binary.LittleEndian.AppendUint32(b, checksum(string(headerKey), b))
}

func decodeHeader(b []byte) (revision int64, items int, err error) {
	if len(b) != headerSize {
		return 0, 0, errRecordShort
	}
	if checksum(string(headerKey), b[:16]) != binary.LittleEndian.Uint32(b[16:]) {
		return 0, 0, errRecordChecksum
	}
	revision = int64(binary.LittleEndian.Uint64(b))
	items = int(binary.LittleEndian.Uint64(b[8:]))
	if revision < 0 || items < 0 {
		return 0, 0, errRecordRevision
	}
	return revision, items, nil
}
