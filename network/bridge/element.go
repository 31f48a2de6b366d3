//go:build linux

package bridge

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// element returns what the library wants to know about an element.
func (v value) element(key string) nftables.SetElement {
	e := nftables.SetElement{Key: []byte(key)}
	switch {
	case v.chain.n > 0:
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: v.chain.chain()}
	case v.data != "":
		e.Val = []byte(v.data)
	}
	return e
}

// indexKey is the number of an endpoint as numgen and jhash leave it in a
// register.
func indexKey(i int) string { return string(binary.NativeEndian.AppendUint32(nil, uint32(i))) }
