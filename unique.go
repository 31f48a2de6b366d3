package orchestrate

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"time"
)

// unique names something that this control plane writes once, such as the
// events of a commit, by what it is about and when. There is no randomness in it,
// so that a fleet in virtual time does the same each time it is run.
func (f *Fleet) unique(about ...string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q/%q/%d", f.opts.id, about, time.Now().UnixNano()))
	return base32.StdEncoding.EncodeToString(sum[:])[:26]
}
