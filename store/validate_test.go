package store_test

import (
	"errors"
	"path"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/orchestrate-go/orchestrate/store"
)

func TestValidateKey(t *testing.T) {
	for key, reason := range map[string]string{
		"/a":                             "",
		"/tasks/node-1/web.3":            "",
		"/services/default/größe":        "",
		"/a b/..":                        "", // odd, but no path of a file system
		"/" + strings.Repeat("x", 1023):  "",
		"":                               "empty",
		"a":                              "must start",
		"a/b":                            "must start",
		"/":                              "empty",
		"/a/":                            "empty",
		"//a":                            "empty segment",
		"/a//b":                          "empty segment",
		"/a\tb":                          "control character",
		"/a\x7f":                         "control character",
		"/\xc3\x28":                      "UTF-8",
		"/" + strings.Repeat("x", 1024):  "longer than 1024",
		"/" + strings.Repeat("/x", 2000): "longer than 1024",
	} {
		err := store.ValidateKey(key)
		var bad *store.KeyError
		switch {
		case reason == "" && err != nil:
			t.Errorf("ValidateKey(%.40q) = %v, want nil", key, err)
		case reason != "" && (!errors.As(err, &bad) || !strings.Contains(err.Error(), reason)):
			t.Errorf("ValidateKey(%.40q) = %v, want a *KeyError that says %q", key, err, reason)
		}
	}
}

func FuzzValidateKey(f *testing.F) {
	for _, key := range []string{"", "/", "/a", "/a/b", "a", "/a/", "//", "/\xff", "/\x00", "/ä"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		// The same said in another way.
		want := strings.HasPrefix(key, "/") && len(key) <= store.MaxKeyBytes && utf8.ValidString(key)
		for _, segment := range strings.Split(key, "/")[min(1, strings.Count(key, "/")):] {
			want = want && segment != "" && !strings.ContainsFunc(segment, unicode.IsControl)
		}
		err := store.ValidateKey(key)
		if got := err == nil; got != want {
			t.Fatalf("ValidateKey(%q) = %v, want valid %v", key, err, want)
		}
		if err != nil {
			if !errors.Is(err, store.ErrInvalid) || len(err.Error()) > 600 {
				t.Fatalf("ValidateKey(%q) = %v, want a short ErrInvalid", key, err)
			}
			return
		}
		// All folders above a key, and all beginnings at a segment, are prefixes.
		for dir := path.Dir(key); dir != "/" && dir != "."; dir = path.Dir(dir) {
			if strings.HasPrefix(key, dir+"/") && (store.ValidatePrefix(dir) != nil || store.ValidatePrefix(dir+"/") != nil) {
				t.Fatalf("%q is not a prefix, but begins the key %q", dir, key)
			}
		}
	})
}

func TestErrorTexts(t *testing.T) {
	for want, err := range map[string]error{
		`conflict at /a: want absent, but it is at revision 7`:                       &store.ConflictError{Key: "/a", Got: 7},
		`conflict at /a: want at revision 3, but it is absent`:                       &store.ConflictError{Key: "/a", Want: 3},
		`store key "a": must start with "/"`:                                         store.ValidateKey("a"),
		`transaction has 129 writes, at most 128 are allowed`:                        store.Txn{Writes: make([]store.Write, 129)}.Validate(),
		`lease of -1ns: the duration must be positive`:                               &store.TTLError{TTL: -1},
		`revision 9 is out of range: want 0 to 5`:                                    &store.RevisionError{Revision: 9, Current: 5},
		`store key "/d": is written twice in one transaction`:                        store.Txn{Writes: []store.Write{store.Delete("/d"), store.Put("/d", nil)}}.Validate(),
		`store key "/` + strings.Repeat("x", 76) + `...": is longer than 1024 bytes`: store.ValidateKey("/" + strings.Repeat("x", 5000)),
	} {
		if err == nil || err.Error() != want {
			t.Errorf("error is %q, want %q", err, want)
		}
	}
}
