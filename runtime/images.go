package runtime

import (
	"context"
	"strings"
)

// Resolver says what a reference means. A [Runtime] may be one, found by type
// assertion; package runtime/registry has one that needs no runtime.
type Resolver interface {
	// Resolve returns the digest of the manifest or index that ref means,
	// such as "sha256:…", as Pull with the same options would make it
	// present, and makes nothing present itself: what is here counts unless
	// the policy is [PullAlways]. A reference with a digest means that. The
	// errors wrap [ErrImageNotFound] or [ErrUnauthorized] where the answer is
	// definite; any other may pass.
	Resolve(ctx context.Context, ref string, opts PullOptions) (digest string, err error)
}

// ImageLister is a [Runtime] that can say which images are present.
type ImageLister interface {
	// Images returns one entry for each reference that is present, by
	// reference. Ref, Digest and Size are set.
	Images(ctx context.Context) ([]Image, error)
}

// Pinned returns ref with a digest, in place of the one it may have. What it
// names cannot move; the tag stays for those who read it.
//
// A Runtime that has an image of that digest, whatever it is known by, has the
// pinned reference too: Pull keeps it under that name without asking anybody,
// and the image then stays when the tag moves on. Its policy may be any:
// content does not change.
func Pinned(ref, digest string) string {
	name, _ := CutDigest(ref)
	return name + "@" + digest
}

// CutDigest parts a reference from its digest, which is empty where there is
// none.
func CutDigest(ref string) (name, digest string) {
	name, digest, _ = strings.Cut(ref, "@")
	return name, digest
}
