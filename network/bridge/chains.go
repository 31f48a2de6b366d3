//go:build linux

package bridge

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
)

// The chains that are not hooks.
const (
	chainPublished = "published" // to an address of the node
	chainTask      = "from-task" // forwarded, from a task
	chainRefuse    = "refuse"    // answer at once that nobody is there
	chainReset     = "resets"    // TCP resets that tasks send
	chainFlags     = "flags"     // the first segments of connections, and resets
)

// chains returns the fixed chains. In words:
//
//	prerouting, output (nat)    a new connection to a frontend goes to one of
//	                            its endpoints
//	postrouting (nat)           a new connection to an endpoint that has been
//	                            withdrawn since goes nowhere;
//	                            what leaves for the world, comes from the
//	                            node's loopback, or would come back to its own
//	                            sender, gets the node's address as source
//	raw                         what is to come encrypted comes no other way;
//	                            only there where something is
//	forward                     networks are apart, also where they share an
//	                            uplink; frontends are not
//	input                       resets, see below; neither tasks nor nodes
//	                            reach the node's loopback
//	output-filter               the node's own connections to frontends
//	                            without endpoints; no redirects to tasks
func (t *table) chains() []ruleChain {
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return &nftables.Chain{Name: name, Table: t.nft, Type: kind, Hooknum: hook, Priority: priority}
	}
	plain := func(name string) *nftables.Chain { return &nftables.Chain{Name: name, Table: t.nft} }

	// A packet that starts a connection: to a virtual address, or to an
	// address of the node and there a published port.
	balance := [][]expr.Any{
		rule(ipv4, t.frontend(true), t.in(setCounted+"4", 8)),
		rule(ipv6, t.frontend(false), t.in(setCounted+"6", 8)),
		rule(ipv4, t.frontend(true), t.verdict(mapVirtual+"4")),
		rule(ipv6, t.frontend(false), t.verdict(mapVirtual+"6")),
		rule(toThisNode, jump(chainPublished)),
	}
	published := [][]expr.Any{
		rule(ipv6, load(dest6, 8), t.in(setLocal6, 8), accept),
		rule(ipv4, protocolAndPort(8), t.in(setCountedAll+"4", 8)),
		rule(ipv6, protocolAndPort(8), t.in(setCountedAll+"6", 8)),
		rule(ipv4, t.frontend(true), t.verdict(mapHost+"4")),
		rule(ipv4, protocolAndPort(8), t.verdict(mapAll+"4")),
		rule(ipv6, t.frontend(false), t.verdict(mapHost+"6")),
		rule(ipv6, protocolAndPort(8), t.verdict(mapAll+"6")),
	}
	masquerade := []expr.Any{&expr.Masq{}}
	// A connection that was sent to an endpoint by the elements before a change
	// and is here after it: the endpoint may be gone by now, and an answer that
	// its host is unreachable would end the connection. Without one its client
	// tries again, and as connection tracking has not taken it in yet, that is a
	// new connection, to an endpoint chosen anew.
	gone := func(to field, width uint32, f string) []expr.Any {
		return rule(translated, load(to, 8), t.in(setWhole+f, 8), load(to, 8+width), t.notIn(setHairpin+f, 8), drop)
	}
	// Where networks share an uplink, a packet's addresses say which it is of.
	// What the other node would not take for its network's own gets this node's
	// address there.
	sameNetwork := func(ipv4 bool) []expr.Any {
		return rule(t.network(source(ipv4), ipv4, 8), t.network(dest(ipv4), ipv4, 12), t.in(setSame, 8))
	}
	postrouting := [][]expr.Any{
		rule(ipv4, gone(dest4, 1, "4")),
		rule(ipv6, gone(dest6, 4, "6")),
		rule(outName, t.in(setUplinks, 8), ipv4, sameNetwork(true), accept),
		rule(outName, t.in(setUplinks, 8), ipv6, sameNetwork(false), accept),
		rule(outName, t.in(setUplinks, 8), ipv4, t.fromGateway(true)),
		rule(outName, t.in(setUplinks, 8), ipv6, t.fromGateway(false)),
		rule(ipv4, load(source4, 8), t.in(setSubnets+"4", 8), outName, t.notIn(setBridges, 8), masquerade),
		rule(ipv6, load(source6, 8), t.in(setSubnets+"6", 8), outName, t.notIn(setBridges, 8), masquerade),
		// To an endpoint on another node: its replies must come back here.
		rule(ipv4, load(source4, 8), t.notIn(setWhole+"4", 8), outName, t.in(setLinks, 8), masquerade),
		rule(ipv6, load(source6, 8), t.notIn(setWhole+"6", 8), outName, t.in(setLinks, 8), masquerade),
		rule(ipv4, load(source4, 8), masked(8, []byte{255, 0, 0, 0}, []byte{127, 0, 0, 0}), outName, t.in(setBridges, 8), masquerade),
		rule(ipv6, load(source6, 8), equal(8, loopback6), outName, t.in(setBridges, 8), masquerade),
		rule(ipv4, load(source4, 8), load(dest4, 9), t.in(setHairpin+"4", 8), masquerade),
		rule(ipv6, load(source6, 8), load(dest6, 12), t.in(setHairpin+"6", 8), masquerade),
	}
	// The node's loopback gets replies, whose own destination is another, and
	// nothing that is sent to it.
	notAReply := ctStateNot(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	input := [][]expr.Any{
		rule(tcpFlags(tcpRST), jump(chainReset)),
		rule(ipv4, load(dest4, 8), masked(8, []byte{255, 0, 0, 0}, []byte{127, 0, 0, 0}), inName, t.in(setGuarded, 8), notAReply, drop),
		rule(ipv6, load(dest6, 8), equal(8, loopback6), inName, t.in(setGuarded, 8), notAReply, drop),
	}
	raw := [][]expr.Any{
		rule(ipv4, load(source4, 8), t.in(setSealed+"4", 8), inName, t.notIn(setInside, 8), drop),
		rule(ipv6, load(source6, 8), t.in(setSealed+"6", 8), inName, t.notIn(setInside, 8), drop),
	}
	// Virtual addresses that are still there after the nat chains: nobody
	// serves them.
	refused := [][]expr.Any{
		rule(ipv4, t.frontend(true), t.in(setRefused+"4", 8), jumpTo(chainRefuse)),
		rule(ipv6, t.frontend(false), t.in(setRefused+"6", 8), jumpTo(chainRefuse)),
		rule(ipv4, load(dest4, 8), t.in(setVirtual+"4", 8), jumpTo(chainRefuse)),
		rule(ipv6, load(dest6, 8), t.in(setVirtual+"6", 8), jumpTo(chainRefuse)),
	}
	// From another node by an uplink: as if it had come by its network's link. A
	// tunnel has looked at the sender's address already, and of two a node may
	// answer by the other.
	fromUplink := func(set string, v4 bool, known []expr.Any) []expr.Any {
		return rule(inName, t.in(set, 8), ofFamily(v4), t.network(source(v4), v4, 8), outNameAt(12), t.in(setSame, 8), known, accept)
	}
	forward := append([][]expr.Any{
		rule(tcpFlags(tcpSYN|tcpRST), jump(chainFlags)),
		rule(ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept),
		rule(inName, t.in(setBridges, 8), jumpTo(chainTask)),
	}, refused...)
	forward = append(forward,
		fromUplink(setUplinks, true, backTheSameWay), fromUplink(setUplinks, false, backTheSameWay),
		fromUplink(setTunnels, true, nil), fromUplink(setTunnels, false, nil),
		// From the world into a network: what was sent to a published port.
		rule(outName, t.in(setBridges, 8), translated, accept),
		rule(outName, t.in(setBridges, 8), drop),
	)
	fromTask := append([][]expr.Any{
		// A packet that connection tracking does not know keeps an endpoint's
		// address as source; its receiver would reset the connection.
		rule(ctState(expr.CtStateBitINVALID), drop),
		rule(translated, accept),
	}, refused...)
	fromTask = append(fromTask,
		rule(inName, outNameAt(12), t.in(setSame, 8), accept),
		rule(outName, t.in(setUplinks, 8), ipv4, inName, t.network(dest4, true, 12), t.in(setSame, 8), accept),
		rule(outName, t.in(setUplinks, 8), ipv6, inName, t.network(dest6, false, 12), t.in(setSame, 8), accept),
		rule(ipv4, load(dest4, 8), t.in(setWhole+"4", 8), prohibited),
		rule(ipv6, load(dest6, 8), t.in(setWhole+"6", 8), prohibited),
		rule(outName, t.in(setBridges, 8), prohibited),
		rule(inName, t.in(setInternal, 8), prohibited),
	)
	// A task whose process has just been killed answers with a reset until
	// its endpoint is withdrawn. Connection tracking forgets a connection
	// whose first answer is a reset; when the client does not see it, it
	// sends its SYN again after a second, and that is a new connection, to an
	// endpoint chosen anew. Such a reset has sequence number 0 (RFC 9293,
	// 3.10.7.1), any other has the one its receiver expects.
	resets := [][]expr.Any{
		rule(inName, t.in(setBridges, 8), translated, resetOfSYN, drop),
	}
	output := append([][]expr.Any{
		rule(ipv4, icmpType(unix.IPPROTO_ICMP, 5), outName, t.in(setGuarded, 8), drop),
		rule(ipv6, icmpType(unix.IPPROTO_ICMPV6, 137), outName, t.in(setGuarded, 8), drop),
		rule(ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept),
	}, refused...)
	chains := []ruleChain{
		{plain(t.layout()), nil},
		{plain(chainRefuse), [][]expr.Any{
			rule(protocolIs(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}),
			rule([]expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}),
		}},
		{plain(chainReset), resets},
		{plain(chainFlags), [][]expr.Any{
			rule(tcpFlags(tcpRST), jump(chainReset)),
			rule(tcpFlags(tcpSYN), outName, t.in(setLinks, 8), clampMSS),
		}},
		{plain(chainTask), fromTask},
		{plain(chainPublished), published},
		{base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest), balance},
		{base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest), balance},
		{base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource), postrouting},
		{base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter), forward},
		{base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter), input},
		{base("output-filter", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter), output},
	}
	if len(t.tunnels) > 0 { // every hook costs each packet
		chains = append(chains, ruleChain{base("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw), raw})
	}
	return chains
}

// choice is how a frontend's chain finds an endpoint.
type choice struct {
	ipv4     bool
	all      bool // published on every address: the map's key has the zero address
	affinity bool
	n        int // endpoints
}

// chain names the chain of a choice, such as "4-virtual-random-3".
func (c choice) chain() string {
	kind, how := "address", "random"
	if c.all {
		kind = "all"
	}
	if c.affinity {
		how = "client"
	}
	return fmt.Sprintf("%s-%s-%s-%d", suffix(c.ipv4), kind, how, c.n)
}

// choiceChain returns the chain that all frontends with this choice share.
// Where it sends a packet depends on the packet's frontend and a number below
// n, drawn at random for each connection or hashed from the client's address.
// A counter would spread more evenly, but shared by many frontends it locks
// them in step.
func (t *table) choiceChain(c choice) ruleChain {
	width, from := uint32(4), source4 // registers of an address
	dest := load(dest4, 8)
	family := uint32(unix.NFPROTO_IPV4)
	words := uint32(1)
	if !c.ipv4 {
		width, from, dest, family, words = 16, source6, load(dest6, 8), unix.NFPROTO_IPV6, 4
	}
	if c.all {
		dest = []expr.Any{&expr.Immediate{Register: 8, Data: make([]byte, width)}}
	}
	index := 8 + words + 2
	var pick []expr.Any
	if c.affinity {
		pick = append(load(from, 16), &expr.Hash{
			SourceRegister: 16, DestRegister: index, Length: width, Modulus: uint32(c.n), Seed: affinitySeed, Type: expr.HashTypeJenkins,
		})
	} else {
		pick = []expr.Any{&expr.Numgen{Register: index, Modulus: uint32(c.n), Type: unix.NFT_NG_RANDOM}}
	}
	set := t.sets[mapEndpoints+suffix(c.ipv4)]
	send := []expr.Any{
		&expr.Lookup{SourceRegister: 8, DestRegister: 16, IsDestRegSet: true, SetName: set.Name, SetID: set.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 16, RegProtoMin: 16 + words, Specified: true},
	}
	return ruleChain{
		Chain: &nftables.Chain{Name: c.chain(), Table: t.nft},
		rules: [][]expr.Any{slices.Concat(dest, protocolAndPort(8+words), pick, send)},
	}
}

// affinitySeed must be the same after a restart.
const affinitySeed = 0x6f726368

// The parts of rules. Registers are the 32-bit ones, 8 to 23; the first free
// one is 8, except where a key is put together.

func rule(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

// field is a part of a packet's network header.
type field struct{ offset, size uint32 }

var (
	source4 = field{12, 4}
	dest4   = field{16, 4}
	source6 = field{8, 16}
	dest6   = field{24, 16}

	loopback6 = []byte{15: 1}

	accept     = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop       = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	prohibited = []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}

	inName  = []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 8}}
	outName = outNameAt(8)

	ipv4 = []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 8}, &expr.Cmp{Op: expr.CmpOpEq, Register: 8, Data: []byte{unix.NFPROTO_IPV4}}}
	ipv6 = []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 8}, &expr.Cmp{Op: expr.CmpOpEq, Register: 8, Data: []byte{unix.NFPROTO_IPV6}}}

	toThisNode = []expr.Any{
		&expr.Fib{Register: 8, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 8, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}

	// backTheSameWay is a packet whose sender the node would answer by the
	// interface that it came in by.
	backTheSameWay = []expr.Any{
		&expr.Fib{Register: 8, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 8, Data: []byte{0}},
	}

	// clampMSS makes the greatest segment that a SYN announces one that fits the
	// way that the SYN takes. A client beyond this node may hear of it by no
	// other means.
	clampMSS = []expr.Any{
		&expr.Rt{Register: 8, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 8, DestRegister: 8, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 8, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	}

	// translated is a connection whose destination was changed.
	translated = []expr.Any{
		&expr.Ct{Register: 8, Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: 8, DestRegister: 8, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(uint32(conntrack.DestinationNAT)), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 8, Data: make([]byte, 4)},
	}

	// TCP's flags are byte 13, its sequence number bytes 4 to 7.
	resetOfSYN = rule(protocolIs(unix.IPPROTO_TCP), []expr.Any{
		&expr.Payload{DestRegister: 8, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 8, Data: []byte{tcpRST | tcpACK}},
		&expr.Payload{DestRegister: 8, Base: expr.PayloadBaseTransportHeader, Offset: 4, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 8, Data: make([]byte, 4)},
	})
)

// tcpFlags is a TCP segment with one of the flags.
func tcpFlags(flags byte) []expr.Any {
	return rule(protocolIs(unix.IPPROTO_TCP), []expr.Any{
		&expr.Payload{DestRegister: 8, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 8, DestRegister: 8, Len: 1, Mask: []byte{flags}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 8, Data: []byte{0}},
	})
}

const (
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// jumpTo goes to a chain and does not come back to this one.
func jumpTo(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

func outNameAt(register uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register}}
}

func load(f field, register uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: f.offset, Len: f.size}}
}

func ofFamily(v4 bool) []expr.Any {
	if v4 {
		return ipv4
	}
	return ipv6
}

func source(ipv4 bool) field {
	if ipv4 {
		return source4
	}
	return source6
}

func dest(ipv4 bool) field {
	if ipv4 {
		return dest4
	}
	return dest6
}

// network loads the bridge of the network that an address is of. Where it is of
// none, the rule ends.
func (t *table) network(f field, ipv4 bool, register uint32) []expr.Any {
	return append(load(f, register), t.lookup(mapNetwork+suffix(ipv4), register))
}

// fromGateway puts the node's own address on the destination's network in front.
func (t *table) fromGateway(ipv4 bool) []expr.Any {
	kind := uint32(unix.NFPROTO_IPV6)
	if ipv4 {
		kind = unix.NFPROTO_IPV4
	}
	return append(load(dest(ipv4), 8), t.lookup(mapGateway+suffix(ipv4), 8),
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: kind, RegAddrMin: 8})
}

// lookup replaces a map's key by what it leads to.
func (t *table) lookup(name string, register uint32) expr.Any {
	return &expr.Lookup{SourceRegister: register, DestRegister: register, IsDestRegSet: true, SetName: name, SetID: t.sets[name].ID}
}

// frontend loads the key of the maps by address: address, protocol, port.
func (t *table) frontend(ipv4 bool) []expr.Any {
	if ipv4 {
		return slices.Concat(load(dest4, 8), protocolAndPort(9))
	}
	return slices.Concat(load(dest6, 8), protocolAndPort(12))
}

// protocolAndPort loads the protocol and the destination port, which TCP and
// UDP have in the same place. Other protocols are in no map.
func protocolAndPort(register uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Payload{DestRegister: register + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func protocolIs(protocol byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 8},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 8, Data: []byte{protocol}},
	}
}

func icmpType(protocol, kind byte) []expr.Any {
	return append(protocolIs(protocol),
		&expr.Payload{DestRegister: 8, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 8, Data: []byte{kind}})
}

// verdict does what a map says about the key.
func (t *table) verdict(name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 8, DestRegister: 0, IsDestRegSet: true, SetName: name, SetID: t.sets[name].ID}}
}

func (t *table) in(name string, register uint32) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: register, SetName: name, SetID: t.sets[name].ID}}
}

func (t *table) notIn(name string, register uint32) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: register, SetName: name, SetID: t.sets[name].ID, Invert: true}}
}

func equal(register uint32, data []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}}
}

func masked(register uint32, mask, data []byte) []expr.Any {
	return []expr.Any{
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data},
	}
}

func ctStateNot(bits uint32) []expr.Any {
	return append(ctState(bits)[:2:2], &expr.Cmp{Op: expr.CmpOpEq, Register: 8, Data: make([]byte, 4)})
}

func ctState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 8, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 8, DestRegister: 8, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 8, Data: make([]byte, 4)},
	}
}
