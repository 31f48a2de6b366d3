//go:build linux

package fastpath

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network/internal/conntrack"
)

// object is what generate.sh makes of fastpath.c.
//
//go:embed fastpath.o
var object []byte

// The types of the maps, as fastpath.c has them. What is big-endian there is an
// array here.
type (
	key struct {
		Interface        uint32
		Protocol         uint8
		_                [3]uint8
		From, To         [16]byte
		FromPort, ToPort [2]byte
	}
	flow struct {
		Key              key
		From, To         [16]byte
		FromPort, ToPort [2]byte
		Translated       uint32
		Interface        uint32
		ToMAC, FromMAC   [6]byte
		_                [4]byte
		Checked          uint64
		_                [64]byte // the way, the program's own
	}
	end struct {
		Link uint32
		MAC  [6]byte
		_    [2]uint8
	}
	node struct {
		Underlay [16]byte
		Number   uint32
	}
)

func keyOf(link int, t conntrack.Tuple) key {
	return key{
		Interface: uint32(link), Protocol: t.Protocol,
		From: t.Src.Addr().As16(), To: t.Dst.Addr().As16(), FromPort: portBytes(t.Src), ToPort: portBytes(t.Dst),
	}
}

func (k key) tuple() conntrack.Tuple {
	return conntrack.Tuple{Protocol: k.Protocol, Src: addrPort(k.From, k.FromPort), Dst: addrPort(k.To, k.ToPort)}
}

// decode reads a key as the program writes it.
func (k *key) decode(data []byte) bool {
	_, err := binary.Decode(data, binary.NativeEndian, k)
	return err == nil
}

func portBytes(a netip.AddrPort) (b [2]byte) {
	binary.BigEndian.PutUint16(b[:], a.Port())
	return b
}

func addrPort(addr [16]byte, port [2]byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(addr).Unmap(), binary.BigEndian.Uint16(port[:]))
}

// objects are the programs and maps in the kernel.
type objects struct {
	FromTask *ebpf.Program  `ebpf:"from_task"`
	FromPeer *ebpf.Program  `ebpf:"from_peer"`
	Flows    *ebpf.Map      `ebpf:"flows"`
	Sent     *ebpf.Map      `ebpf:"sent"`
	Busy     *ebpf.Map      `ebpf:"busy"`
	Ends     *ebpf.Map      `ebpf:"ends"`
	Passed   *ebpf.Map      `ebpf:"passed"`
	Uplink   *ebpf.Variable `ebpf:"uplink"`
	Until    *ebpf.Variable `ebpf:"until"`
}

// The first Linux that knows all that the programs call. The kernel checks that of
// most of it when it takes them in, but an older one would take them and then drop
// each packet for the sake of a flag (BPF_F_ADJ_ROOM_ENCAP_L2_ETH).
const needsMajor, needsMinor = 5, 13

// clock is bpf_ktime_get_coarse_ns, by which the programs tell the time, in ns.
func clock() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now); err != nil {
		panic(err) // clock_gettime(2): only a clock that there is not, since Linux 2.6.32
	}
	return now.Nano()
}

// old says why a kernel of a release is too old, or nothing.
func old(release string) error {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("cannot read the kernel's release %q: %w", release, err)
	}
	if major < needsMajor || major == needsMajor && minor < needsMinor {
		return fmt.Errorf("the kernel is Linux %s; it needs %d.%d: %w", release, needsMajor, needsMinor, ebpf.ErrNotSupported)
	}
	return nil
}

// load has the kernel check the programs and take them in.
func load(o Options) (*objects, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, err
	}
	if err := old(unix.ByteSliceToString(name.Release[:])); err != nil {
		return nil, err
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, err
	}
	var ipv6 uint8
	if o.Underlay.Is6() {
		ipv6 = 1
	}
	for name, value := range map[string]any{
		"refresh_ns": int64(o.Refresh / time.Nanosecond), "idle_ns": int64(o.Idle / time.Nanosecond), "worth": uint32(o.Worth),
		"underlay": o.Underlay.As16(), "underlay6": ipv6, "port": o.Port,
	} {
		v := spec.Variables[name]
		if v == nil {
			return nil, fmt.Errorf("the program has no variable %s", name)
		}
		if err := v.Set(value); err != nil {
			return nil, fmt.Errorf("variable %s: %w", name, err)
		}
	}
	objs := &objects{}
	if err := spec.LoadAndAssign(objs, nil); err != nil {
		return nil, err
	}
	return objs, nil
}

func (o *objects) close() {
	for _, p := range []*ebpf.Program{o.FromTask, o.FromPeer} {
		_ = p.Close() // nothing is left to be written
	}
	for _, m := range []*ebpf.Map{o.Flows, o.Sent, o.Busy, o.Ends, o.Passed} {
		_ = m.Close()
	}
}
