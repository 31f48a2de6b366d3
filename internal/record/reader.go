package record

import (
	"encoding/json"
	"net/netip"
	"time"
)

// reader reads JSON in the one form in which encoding/json writes this package's
// records: no blanks, the fields of a struct in their order, each at most once.
// Records of tasks are read by the hundred thousand when a leader begins, and
// encoding/json takes five times as long over them (BenchmarkReadTask). Whatever has
// another form, be it right or wrong, the reader gives up on, and it is left to
// encoding/json: it decides what a record says, and what is wrong with one. Fields
// that are rare, and structs of many forms, are its in any case.
type reader struct {
	data   []byte
	at     int
	gaveUp bool
}

// ended reports whether all was read, and nothing is left.
func (r *reader) ended() bool { return !r.gaveUp && r.at == len(r.data) }

// fail gives up.
func (r *reader) fail() { r.gaveUp, r.at = true, len(r.data) }

// take reads one byte, which must be c.
func (r *reader) take(c byte) {
	if r.at < len(r.data) && r.data[r.at] == c {
		r.at++
		return
	}
	r.fail()
}

// more reports whether an object or an array goes on, of which end is the last
// byte: then what comes next is a key, or a value.
func (r *reader) more(end byte) bool {
	if r.at >= len(r.data) {
		r.fail()
		return false
	}
	before, next := r.data[r.at-1], r.data[r.at]
	switch {
	case next == end:
		r.at++
		return false
	case before == '{' || before == '[': // the first
		return true
	case next == ',':
		r.at++
		return true
	}
	r.fail()
	return false
}

// key reads a key, and returns its place among keys: one after last, which is that of
// the key before.
func (r *reader) key(last *int, keys []string) int {
	key := r.text()
	r.take(':')
	for i := *last + 1; i < len(keys) && !r.gaveUp; i++ {
		if string(key) == keys[i] {
			*last = i
			return i
		}
	}
	r.fail()
	return -1
}

// text reads a string of printable ASCII without escapes. It is valid until data is
// written to.
func (r *reader) text() []byte {
	r.take('"')
	begin := r.at
	for ; r.at < len(r.data); r.at++ {
		switch c := r.data[r.at]; {
		case c == '"':
			r.at++
			return r.data[begin : r.at-1]
		case c == '\\' || c < ' ' || c >= 0x80:
			r.fail()
			return nil
		}
	}
	r.fail()
	return nil
}

func (r *reader) string() string { return string(r.text()) }

// same reads a string that is probably s.
func (r *reader) same(s string) string {
	if text := r.text(); string(text) != s {
		return string(text)
	}
	return s
}

// int reads a whole number of at most 18 digits.
func (r *reader) int() int64 {
	negative := r.at < len(r.data) && r.data[r.at] == '-'
	if negative {
		r.at++
	}
	begin, n := r.at, int64(0)
	for ; r.at < len(r.data) && r.data[r.at] >= '0' && r.data[r.at] <= '9'; r.at++ {
		n = n*10 + int64(r.data[r.at]-'0')
		if r.at-begin >= 18 {
			r.fail()
			return 0
		}
	}
	digits := r.at - begin
	if digits == 0 || digits > 1 && r.data[begin] == '0' {
		r.fail()
		return 0
	}
	if negative {
		return -n
	}
	return n
}

func (r *reader) bool() bool {
	if r.literal("true") {
		return true
	}
	if !r.literal("false") {
		r.fail()
	}
	return false
}

func (r *reader) literal(word string) bool {
	if rest := r.data[r.at:]; len(rest) < len(word) || string(rest[:len(word)]) != word {
		return false
	}
	r.at += len(word)
	return true
}

func (r *reader) time() (t time.Time) {
	if text := r.text(); !r.gaveUp && t.UnmarshalText(text) != nil {
		r.fail()
	}
	return t
}

func (r *reader) strings() []string {
	all := []string{}
	for r.take('['); r.more(']'); {
		all = append(all, r.string())
	}
	return all
}

func (r *reader) addrs() []netip.Addr {
	all := []netip.Addr{}
	for r.take('['); r.more(']'); {
		var a netip.Addr
		if text := r.text(); r.gaveUp || a.UnmarshalText(text) != nil {
			r.fail()
		}
		all = append(all, a)
	}
	return all
}

// maxDepth is how deep values may be nested that are read over.
const maxDepth = 64

// raw reads over one value, and returns it as it is.
func (r *reader) raw() []byte {
	begin := r.at
	r.skip(maxDepth)
	if r.gaveUp {
		return nil
	}
	return r.data[begin:r.at]
}

func (r *reader) skip(depth int) {
	if r.at >= len(r.data) || depth == 0 {
		r.fail()
		return
	}
	switch c := r.data[r.at]; {
	case c == '"':
		r.skipString()
	case c == '{':
		for r.at++; r.more('}'); r.skip(depth - 1) {
			r.skipString()
			r.take(':')
		}
	case c == '[':
		for r.at++; r.more(']'); {
			r.skip(depth - 1)
		}
	case c == '-' || c >= '0' && c <= '9':
		r.number()
	case !r.literal("true") && !r.literal("false") && !r.literal("null"):
		r.fail()
	}
}

// number reads over a number, RFC 8259 section 6.
func (r *reader) number() {
	if r.data[r.at] == '-' {
		r.at++
	}
	if begin := r.at; r.digits() > 1 && r.data[begin] == '0' {
		r.fail()
	}
	if r.at < len(r.data) && r.data[r.at] == '.' {
		r.at++
		r.digits()
	}
	if r.at < len(r.data) && (r.data[r.at] == 'e' || r.data[r.at] == 'E') {
		if r.at++; r.at < len(r.data) && (r.data[r.at] == '+' || r.data[r.at] == '-') {
			r.at++
		}
		r.digits()
	}
}

// digits reads over one digit at least.
func (r *reader) digits() (n int) {
	for r.at < len(r.data) && r.data[r.at] >= '0' && r.data[r.at] <= '9' {
		r.at++
		n++
	}
	if n == 0 {
		r.fail()
	}
	return n
}

// skipString reads over a string that may have escapes, and bytes of any kind.
func (r *reader) skipString() {
	r.take('"')
	for ; r.at < len(r.data); r.at++ {
		switch c := r.data[r.at]; {
		case c == '"':
			r.at++
			return
		case c < ' ':
			r.fail()
			return
		case c == '\\':
			if r.at++; r.at >= len(r.data) {
				break
			}
			switch r.data[r.at] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for range 4 {
					if r.at++; r.at >= len(r.data) || !hexDigit(r.data[r.at]) {
						r.fail()
						return
					}
				}
			default:
				r.fail()
				return
			}
		}
	}
	r.fail()
}

func hexDigit(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

// other reads a value by encoding/json.
func (r *reader) other(into any) {
	if raw := r.raw(); !r.gaveUp && json.Unmarshal(raw, into) != nil {
		r.fail()
	}
}
