package store

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits that every store enforces alike, so that what works with one works
// with all. They fit etcd's defaults (--max-txn-ops 128, --max-request-bytes
// 1.5 MiB), whose request has some framing around each key and value.
const (
	// MaxKeyBytes is the longest key or prefix, in bytes.
	MaxKeyBytes = 1024
	// MaxTxnOps is the greatest number of conditions, and of writes, in one
	// transaction.
	MaxTxnOps = 128
	// MaxTxnBytes is the greatest size of a transaction: all keys and values,
	// and 64 bytes of framing for each condition and write. The 96 KiB up to
	// etcd's limit are for what a store puts before each key.
	MaxTxnBytes = 1440 << 10

	opFraming = 64
)

// ValidateKey checks that key can be stored: "/" before each segment, no empty
// segment, at most [MaxKeyBytes] of UTF-8 without control characters. The error
// is a [*KeyError].
func ValidateKey(key string) error {
	if key == "" {
		return &KeyError{Key: key, Reason: `is empty; want "/" and a name`}
	}
	if err := ValidatePrefix(key); err != nil {
		return err
	}
	if strings.HasSuffix(key, "/") {
		return &KeyError{Key: key, Reason: `ends with "/", so its last segment is empty`}
	}
	return nil
}

// ValidatePrefix checks that prefix can be the beginning of a key; an empty one
// can. The error is a [*KeyError].
func ValidatePrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	if prefix[0] != '/' {
		return &KeyError{Key: prefix, Reason: `must start with "/"`}
	}
	if len(prefix) > MaxKeyBytes {
		return &KeyError{Key: prefix, Reason: "is longer than 1024 bytes"}
	}
	if strings.Contains(prefix, "//") {
		return &KeyError{Key: prefix, Reason: `has an empty segment: "//"`}
	}
	if !utf8.ValidString(prefix) {
		return &KeyError{Key: prefix, Reason: "is not valid UTF-8"}
	}
	if strings.ContainsFunc(prefix, unicode.IsControl) {
		return &KeyError{Key: prefix, Reason: "has a control character"}
	}
	return nil
}

// Validate checks what can be checked without the state: keys, no key written
// twice, and the limits. Implementations call it first. The error is a
// [*KeyError] or a [*LimitError].
func (t Txn) Validate() error {
	if len(t.If) > MaxTxnOps {
		return &LimitError{What: "conditions", Got: len(t.If), Max: MaxTxnOps}
	}
	if len(t.Writes) > MaxTxnOps {
		return &LimitError{What: "writes", Got: len(t.Writes), Max: MaxTxnOps}
	}
	size := 0
	for _, c := range t.If {
		if err := ValidateKey(c.Key); err != nil {
			return err
		}
		if c.Revision < 0 {
			return &KeyError{Key: c.Key, Reason: "has a condition on a negative revision; 0 means absent"}
		}
		size += len(c.Key) + opFraming
	}
	for i, w := range t.Writes {
		if err := ValidateKey(w.Key); err != nil {
			return err
		}
		if w.Delete && (len(w.Value) > 0 || w.Lease != "") {
			return &KeyError{Key: w.Key, Reason: "is deleted, so it must have neither value nor lease"}
		}
		if t.writesBefore(i, w.Key) {
			return &KeyError{Key: w.Key, Reason: "is written twice in one transaction"}
		}
		size += len(w.Key) + len(w.Value) + len(w.Lease) + opFraming
	}
	if size > MaxTxnBytes {
		return &LimitError{What: "bytes", Got: size, Max: MaxTxnBytes}
	}
	return nil
}

// writesBefore says whether one of the first n writes is to key. With at most
// MaxTxnOps writes comparing beats building a set.
func (t Txn) writesBefore(n int, key string) bool {
	for i := range n {
		if t.Writes[i].Key == key {
			return true
		}
	}
	return false
}
