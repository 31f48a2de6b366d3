package orchestrate

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// image checks an image reference in the grammar of the distribution project
// (https://pkg.go.dev/github.com/distribution/reference):
//
//	[domain[:port]/]path[:tag][@digest]
func (c *checks) image(at, ref string) {
	if mistake := imageMistake(ref); mistake != "" {
		c.add(at, ref, "%s", mistake)
	}
}

// imageMistake says what is wrong with an image reference; "" when nothing is.
func imageMistake(ref string) string {
	if ref == "" {
		return `is missing; give a reference such as "web:1" or "registry.example/team/web@sha256:…"`
	}
	if strings.Contains(ref, "://") {
		return `begins like a URL; leave the part up to "://" away`
	}
	name, digest, hasDigest := strings.Cut(ref, "@")
	if hasDigest {
		if mistake := digestMistake(digest); mistake != "" {
			return mistake
		}
	}
	// A tag follows the last colon, unless that is in front of a slash: then
	// it is a port's.
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		if !isTag(name[colon+1:]) {
			return fmt.Sprintf("has the tag %q; a tag is 1 to 128 of the characters A-Z a-z 0-9 _ . - and begins with none of the last two", shorten(name[colon+1:]))
		}
		name = name[:colon]
	}
	if len(name) > 255 {
		return "has a name of more than 255 characters"
	}
	if len(name) == 64 && only(name, isHex) {
		return "looks like an image ID; give a name, or name@sha256:… to pin the content"
	}
	path := name
	if first, rest, ok := strings.Cut(name, "/"); ok && (first == "localhost" || strings.ContainsAny(first, ".:[")) {
		if !isDomain(first) {
			return fmt.Sprintf("names the registry %q; that is a host name or address and, after a colon, a port from 1 to 65535", shorten(first))
		}
		path = rest
	}
	for part := range strings.SplitSeq(path, "/") {
		switch {
		case part == "":
			return "has an empty part in its name; write the parts with one slash between them"
		case strings.ToLower(part) != part && isPathPart(strings.ToLower(part)):
			return fmt.Sprintf("has upper case in its name; write %q", shorten(strings.ToLower(part)))
		case !isPathPart(part):
			return fmt.Sprintf("has %q in its name; each part is lower-case letters and digits, separated by one of . _ __ or hyphens", shorten(part))
		}
	}
	return ""
}

// digestMistake checks a digest of OCI image-spec, descriptor.md, section
// Digests, with the algorithms that registries serve.
func digestMistake(digest string) string {
	algorithm, sum, ok := strings.Cut(digest, ":")
	size := map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}[algorithm]
	switch {
	case !ok || size == 0:
		return fmt.Sprintf("has the digest %q; write sha256: (or sha384:, sha512:) and the digits", shorten(digest))
	case len(sum) != size || !only(sum, isHex):
		return fmt.Sprintf("has a wrong digest; after %s: come %d lower-case hexadecimal digits, here are %d characters", algorithm, size, len(sum))
	}
	return ""
}

func isTag(s string) bool {
	return s != "" && len(s) <= 128 && s[0] != '.' && s[0] != '-' &&
		only(s, func(b byte) bool { return isAlnum(b) || b == '_' || b == '.' || b == '-' })
}

// isPathPart matches [a-z0-9]+(([._]|__|-+)[a-z0-9]+)*.
func isPathPart(s string) bool {
	separator := "-" // as if one stood before the beginning: none may follow
	for i := range len(s) {
		switch b := s[i]; {
		case isLower(b) || isDigit(b):
			separator = ""
		case i == 0 || strings.IndexByte("._-", b) < 0:
			return false
		default:
			separator += string(b)
			if separator != "." && separator != "_" && separator != "__" && strings.Trim(separator, "-") != "" {
				return false
			}
		}
	}
	return separator == ""
}

func isDomain(s string) bool {
	host, port := s, ""
	if colon := strings.LastIndexByte(s, ':'); colon >= 0 && colon > strings.LastIndexByte(s, ']') {
		host, port = s[:colon], s[colon+1:]
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || !only(port, isDigit) {
			return false
		}
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		addr, err := netip.ParseAddr(inner)
		return ok && err == nil && addr.Is6() && addr.Zone() == ""
	}
	for part := range strings.SplitSeq(host, ".") {
		if !isLabel(strings.ToLower(part), 63) {
			return false
		}
	}
	return true
}

func isHex(b byte) bool { return isDigit(b) || 'a' <= b && b <= 'f' }
