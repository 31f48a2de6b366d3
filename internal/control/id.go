package control

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strings"
)

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

const (
	maxTaskID = 50
	// hashChars of base32 are 50 bits. They tell apart the tasks that one slot
	// has ever had, and services whose long names begin alike.
	hashChars = 10
)

// taskID names a task for ever, such as "web.3.k2xq7c1abc". It is derived from
// the store revision that the decision was made at, which grows with each
// commit: so no two tasks of a slot share it, and a decision that is made again
// because its commit got lost yields the same ID. Salt is above 0 when the ID
// turned out to be taken.
func taskID(namespace, service string, slot int, revision int64, salt int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d/%d/%d", namespace, service, slot, revision, salt))
	tail := fmt.Sprintf(".%d.%s", slot, idEncoding.EncodeToString(sum[:])[:hashChars])
	if room := maxTaskID - len(tail); len(service) > room {
		service = strings.TrimRight(service[:room], "-.")
	}
	return service + tail
}
