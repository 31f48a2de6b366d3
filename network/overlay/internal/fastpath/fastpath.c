//go:build ignore

// SPDX-License-Identifier: MIT OR GPL-2.0
//
// The packet's side of package fastpath, see its documentation. Two programs for
// traffic control's ingress hook: from_task at the host's end of a task's pair of
// interfaces, from_peer where packets of other nodes come in. Each looks a packet
// up by its addresses and ports. What is known goes on from here; all else, and
// whatever is out of the ordinary, is left to the kernel's own way, with not one
// byte of it changed.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// Some of the helpers are for programs under the GPL only.
char _license[] SEC("license") = "Dual MIT/GPL";
char _source[] SEC("source") = SOURCE; // hash of this file, for a test

#define AF_INET 2
#define AF_INET6 10

// IPv4 addresses are mapped ones of IPv6 (RFC 4291, 2.5.5.2).
struct address {
	__be32 word[4];
};

// A packet's addresses and ports are as they come to the program. In the byte
// order of the network, but for the interface.
struct key {
	__u32 interface; // that a task's packets come in by; 0 for a peer's
	__u8 protocol;
	__u8 pad[3];
	struct address from, to;
	__be16 from_port, to_port;
};

struct node {
	struct address underlay;
	__u32 number; // of the VXLAN network
};

// Where the kernel's routes and neighbours lead, as they were at a tick of its
// clock: each packet of a flow that comes in the same tick goes the same way.
struct way {
	__u64 at;
	__u32 interface;
	__u32 mtu; // of the interfaces that the routes name
	__u8 to_mac[6], from_mac[6];
	// Inside of VXLAN, where the route leads to a link of that kind.
	__u8 inner_to_mac[6], inner_from_mac[6];
	struct node node; // without a number for a direct route
};

struct flow {
	struct key key;		 // whose it is, see same; the first that is written
	struct address from, to; // as they are to be
	__be16 from_port, to_port;
	__u32 translated;	// whether these are others than the key's
	__u32 interface;	// from a task: its bridge; to a task: the host's end
	__u8 to_mac[6];		// of the task
	__u8 from_mac[6];	// of the bridge
	__u64 checked;		// when a packet last went the kernel's own way, ns
	struct way way;		// from a task
};

// What answers on a VXLAN link for a hardware address.
struct end {
	__u32 link;
	__u8 mac[6];
	__u8 pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct key);
	__type(value, struct flow);
} flows SEC(".maps");

// Packets that tasks have sent by flows that are not known.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct key);
	__type(value, __u32);
} sent SEC(".maps");

// Keys of flows that have sent enough to be worth knowing.
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} busy SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct end);
	__type(value, struct node);
} ends SEC(".maps");

// Packets that went by the fast path: [0] from tasks, [1] to tasks.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} passed SEC(".maps");

const volatile __s64 refresh_ns;	  // a flow's packet goes the kernel's way so often
const volatile __s64 idle_ns;		  // a flow without packets for so long is forgotten
const volatile __u32 worth;		  // packets, a power of two
const volatile struct address underlay;	  // this node's
const volatile __u8 underlay6;		  // whether it is of IPv6
const volatile __u16 port;		  // of VXLAN
volatile __u32 uplink;			  // the interface of direct routes; 0 if there are none
volatile __u64 until;			  // when the agent that knows better has been away for too long, ns

// own is underlay. As a whole, which is not volatile, the compiler takes it for 0.
static __always_inline struct address own(void)
{
	return (struct address){{underlay.word[0], underlay.word[1], underlay.word[2], underlay.word[3]}};
}

struct headers {
	__u8 ipv6;
	__u8 tos;
	__u8 ends; // a segment that begins or ends a connection
	__u32 l3, l4; // offsets
	__u32 size; // from the IP header to the payload
	__be32 flow_info;
	__be16 from_port; // of VXLAN
};

// read takes a packet apart. It returns 0 for what is not to be touched: neither
// TCP nor UDP, fragments, options, and what is at the end of its hops.
static __always_inline int read(struct __sk_buff *skb, struct key *k, struct headers *h)
{
	if (skb->vlan_present)
		return 0;
	// No more than headers: what is pulled of the payload costs its receiver.
	__u32 need = ETH_HLEN + sizeof(struct tcphdr);
	need += skb->protocol == bpf_htons(ETH_P_IPV6) ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	if (skb->data_end - skb->data < need && skb->len >= need)
		bpf_skb_pull_data(skb, need);
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	if ((void *)(eth + 1) > end)
		return 0;
	h->l3 = ETH_HLEN;
	void *l4;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		l4 = ip + 1;
		if (l4 > end || ip->version != 4 || ip->ihl != 5 || ip->ttl <= 1 || ip->frag_off & bpf_htons(0x3fff))
			return 0;
		k->protocol = ip->protocol;
		k->from.word[2] = k->to.word[2] = bpf_htonl(0xffff);
		k->from.word[3] = ip->saddr;
		k->to.word[3] = ip->daddr;
		h->tos = ip->tos;
		h->l4 = ETH_HLEN + sizeof *ip;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		l4 = ip + 1;
		if (l4 > end || ip->version != 6 || ip->hop_limit <= 1)
			return 0;
		k->protocol = ip->nexthdr;
		__builtin_memcpy(&k->from, &ip->saddr, sizeof k->from);
		__builtin_memcpy(&k->to, &ip->daddr, sizeof k->to);
		// An address of IPv4 in a header of IPv6 is not what it is in a key;
		// the kernel drops such.
		if (!k->from.word[0] && !k->from.word[1] && k->from.word[2] == bpf_htonl(0xffff))
			return 0;
		h->ipv6 = 1;
		h->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
		h->flow_info = *(__be32 *)ip & bpf_htonl(0x0fffffff);
		h->l4 = ETH_HLEN + sizeof *ip;
	} else {
		return 0;
	}
	if (k->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;
		if ((void *)(tcp + 1) > end)
			return 0;
		k->from_port = tcp->source;
		k->to_port = tcp->dest;
		h->ends = tcp->syn | tcp->fin | tcp->rst;
		h->size = h->l4 - ETH_HLEN + tcp->doff * 4;
	} else if (k->protocol == IPPROTO_UDP) {
		struct udphdr *udp = l4;
		if ((void *)(udp + 1) > end)
			return 0;
		k->from_port = udp->source;
		k->to_port = udp->dest;
		h->size = h->l4 - ETH_HLEN + sizeof *udp;
	} else {
		return 0;
	}
	return 1;
}

// find returns the flow of a packet that may pass; known says that there is one,
// also where this packet may not. Connection tracking is shown each flow's ends, and
// a packet now and then, by which it keeps the flow.
static __always_inline struct flow *find(const struct key *k, const struct headers *h, __u64 now, int *known)
{
	struct flow *f = bpf_map_lookup_elem(&flows, k);
	if (!f)
		return 0;
	__s64 age = now - f->checked; // below 0 where another processor was here since
	if (h->ends || age > idle_ns) {
		bpf_map_delete_elem(&flows, k);
		return 0;
	}
	*known = 1;
	if (now > until)
		return 0;
	if (age > refresh_ns) {
		f->checked = now;
		return 0;
	}
	return f;
}

// same tells whether a flow that was found is still the one. The kernel may give its
// memory to another while this program uses it.
static __always_inline int same(struct flow *f, const struct key *k)
{
	const volatile __u32 *a = (const volatile __u32 *)&f->key;
	const __u32 *b = (const __u32 *)k;
	__u32 differ = 0;
	for (int i = 0; i < sizeof *k / sizeof *b; i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

// count tells of a flow that is worth knowing, and again each time that it has
// sent twice as much: there may have been nobody who listened.
static __always_inline void count(const struct key *k)
{
	__u32 *n = bpf_map_lookup_elem(&sent, k), one = 1;
	if (!n) {
		bpf_map_update_elem(&sent, k, &one, BPF_NOEXIST);
		return;
	}
	__u32 now = ++*n;
	if (now >= worth && !(now & (now - 1)))
		bpf_ringbuf_output(&busy, (void *)k, sizeof *k, 0);
}

static __always_inline void pass(__u32 way)
{
	__u64 *n = bpf_map_lookup_elem(&passed, &way);
	if (n)
		++*n;
}

// hop does to a packet what each router does. The hop limit of IPv6 is part of the
// sum over all of the packet that some interfaces give; that of IPv4 and its
// header's checksum make up for each other.
static __always_inline int hop(struct __sk_buff *skb, const struct headers *h, const __u8 *to, const __u8 *from)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	if ((void *)(eth + 1) > end)
		return 0;
	if (h->ipv6) {
		struct ipv6hdr *ip = data + h->l3;
		if ((void *)(ip + 1) > end)
			return 0;
		ip->hop_limit--;
	} else {
		struct iphdr *ip = data + h->l3;
		if ((void *)(ip + 1) > end)
			return 0;
		__u32 sum = ip->check + (__u32)bpf_htons(0x0100); // RFC 1141
		ip->check = sum + (sum >= 0xffff);
		ip->ttl--;
	}
	__builtin_memcpy(eth->h_dest, to, ETH_ALEN);
	__builtin_memcpy(eth->h_source, from, ETH_ALEN);
	if (h->ipv6)
		bpf_csum_update(skb, ~(__u32)bpf_htons(1));
	return 1;
}

// translate puts a flow's addresses and ports in the place of a packet's.
static __always_inline int translate(struct __sk_buff *skb, const struct headers *h, const struct key *k, const struct flow *f)
{
	__u32 check = h->l4 + (k->protocol == IPPROTO_TCP ? __builtin_offsetof(struct tcphdr, check) : __builtin_offsetof(struct udphdr, check));
	__u64 flags = k->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__s64 change = bpf_csum_diff((__be32 *)&k->from, 2 * sizeof k->from, (__be32 *)&f->from, 2 * sizeof f->from, 0);
	__be16 ports[2] = {f->from_port, f->to_port};
	long err = 0;
	if (change < 0)
		return 0;
	if (h->ipv6) {
		err |= bpf_skb_store_bytes(skb, h->l3 + __builtin_offsetof(struct ipv6hdr, saddr), &f->from, 2 * sizeof f->from, 0);
		// The sum over all of the packet: here no checksum of the header makes
		// up for its addresses, as the replacement below thinks.
		bpf_csum_update(skb, change);
	} else {
		err |= bpf_l3_csum_replace(skb, h->l3 + __builtin_offsetof(struct iphdr, check), 0, change, 0);
		__be32 addresses[2] = {f->from.word[3], f->to.word[3]};
		err |= bpf_skb_store_bytes(skb, h->l3 + __builtin_offsetof(struct iphdr, saddr), addresses, sizeof addresses, 0);
	}
	err |= bpf_l4_csum_replace(skb, check, 0, change, flags | BPF_F_PSEUDO_HDR);
	err |= bpf_l4_csum_replace(skb, check, k->from_port, f->from_port, flags | sizeof(__be16));
	err |= bpf_l4_csum_replace(skb, check, k->to_port, f->to_port, flags | sizeof(__be16));
	err |= bpf_skb_store_bytes(skb, h->l4, ports, sizeof ports, 0);
	return !err;
}

// What VXLAN puts around a packet (RFC 7348, 5).
struct outer4 {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	__be32 vxlan[2];
	struct ethhdr inner;
} __attribute__((packed));

struct outer6 {
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct udphdr udp;
	__be32 vxlan[2];
	struct ethhdr inner;
} __attribute__((packed));

// outer_port spreads flows over the ways of the underlay (RFC 7348, 5).
static __always_inline __be16 outer_port(struct __sk_buff *skb)
{
	return bpf_htons(49152 + (bpf_get_hash_recalc(skb) & 0x3fff));
}

// next finds where the kernel would send a packet that came in by an interface.
static __always_inline int next(struct __sk_buff *skb, struct bpf_fib_lookup *p, int ipv6, const struct address *from, const struct address *to, __u32 interface)
{
	p->family = ipv6 ? AF_INET6 : AF_INET;
	p->ifindex = interface;
	p->tot_len = 1; // any: the answer then has the route's MTU, not its interface's
	if (ipv6) {
		__builtin_memcpy(p->ipv6_src, from, sizeof *from);
		__builtin_memcpy(p->ipv6_dst, to, sizeof *to);
	} else {
		p->ipv4_src = from->word[3];
		p->ipv4_dst = to->word[3];
	}
	return bpf_fib_lookup(skb, p, sizeof *p, 0) == BPF_FIB_LKUP_RET_SUCCESS;
}

// lead finds a flow's way. Another processor may be at it too; both find the same,
// but in the tick in which a route changes.
static __always_inline int lead(struct __sk_buff *skb, const struct headers *h, struct flow *f, __u64 now)
{
	struct bpf_fib_lookup p = {.tos = h->tos};
	if (h->ipv6)
		p.flowinfo = h->flow_info;
	if (!next(skb, &p, h->ipv6, &f->from, &f->to, f->interface))
		return 0;
	struct way w = {.interface = p.ifindex, .mtu = p.mtu_result};
	__builtin_memcpy(w.to_mac, p.dmac, ETH_ALEN);
	__builtin_memcpy(w.from_mac, p.smac, ETH_ALEN);
	if (p.ifindex != uplink) {
		struct end e = {.link = p.ifindex};
		__builtin_memcpy(e.mac, p.dmac, ETH_ALEN);
		struct node *n = bpf_map_lookup_elem(&ends, &e);
		if (!n)
			return 0;
		struct bpf_fib_lookup under = {.l4_protocol = IPPROTO_UDP, .sport = outer_port(skb), .dport = bpf_htons(port)};
		const struct address from = own();
		if (!next(skb, &under, underlay6, &from, &n->underlay, f->interface))
			return 0;
		__u32 size = underlay6 ? sizeof(struct outer6) : sizeof(struct outer4);
		if (w.mtu + size > under.mtu_result + ETH_HLEN)
			w.mtu = under.mtu_result + ETH_HLEN - size;
		w.node = *n;
		w.interface = under.ifindex;
		__builtin_memcpy(w.inner_to_mac, w.to_mac, ETH_ALEN);
		__builtin_memcpy(w.inner_from_mac, w.from_mac, ETH_ALEN);
		__builtin_memcpy(w.to_mac, under.dmac, ETH_ALEN);
		__builtin_memcpy(w.from_mac, under.smac, ETH_ALEN);
	}
	// Last the tick: who reads it on another processor finds the rest of it.
	__builtin_memcpy((char *)&f->way + sizeof w.at, (char *)&w + sizeof w.at, sizeof w - sizeof w.at);
	barrier();
	*(volatile __u64 *)&f->way.at = now;
	return 1;
}

// room makes room for VXLAN around a packet. It fails, with nothing changed, where
// the kernel does not put a second tunnel around what a task sends by one of its own.
static __always_inline int room(struct __sk_buff *skb, struct headers *h)
{
	const __u32 size = (underlay6 ? sizeof(struct outer6) : sizeof(struct outer4)) - ETH_HLEN;
	const __u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) |
			    (underlay6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
	h->from_port = outer_port(skb);
	if (bpf_skb_adjust_room(skb, size, BPF_ADJ_ROOM_MAC, flags))
		return 0;
	h->l3 += size;
	h->l4 += size;
	return 1;
}

// wrap puts VXLAN around a packet, where there is room, and sends it to a node.
static __always_inline int wrap(struct __sk_buff *skb, const struct headers *h, const struct way *w)
{
	struct ethhdr eth, inner;
	eth.h_proto = underlay6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	__builtin_memcpy(eth.h_dest, w->to_mac, ETH_ALEN);
	__builtin_memcpy(eth.h_source, w->from_mac, ETH_ALEN);
	inner.h_proto = h->ipv6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	__builtin_memcpy(inner.h_dest, w->inner_to_mac, ETH_ALEN);
	__builtin_memcpy(inner.h_source, w->inner_from_mac, ETH_ALEN);
	// Congestion is told through the tunnel (RFC 6040, 4.1, as the kernel does
	// it: what has met congestion already may meet it again).
	__u8 ecn = h->tos & 3;
	if (ecn == 3)
		ecn = 2;
	if (underlay6) {
		const __be16 length = bpf_htons(skb->len - __builtin_offsetof(struct outer6, udp));
		struct outer6 o = {
			.eth = eth,
			.ip = {.version = 6, .nexthdr = IPPROTO_UDP, .hop_limit = 64, .payload_len = length},
			.udp = {h->from_port, bpf_htons(port), length, 0},
			.vxlan = {bpf_htonl(1 << 27), bpf_htonl(w->node.number << 8)},
			.inner = inner,
		};
		o.ip.flow_lbl[0] = ecn << 4;
		const struct address from = own();
		__builtin_memcpy(&o.ip.saddr, &from, sizeof from);
		__builtin_memcpy(&o.ip.daddr, &w->node.underlay, sizeof w->node.underlay);
		if (bpf_skb_store_bytes(skb, 0, &o, sizeof o, BPF_F_INVALIDATE_HASH))
			return TC_ACT_SHOT;
	} else {
		const __be16 length = bpf_htons(skb->len - __builtin_offsetof(struct outer4, udp));
		struct iphdr ip = {
			.version = 4, .ihl = 5, .tos = ecn, .ttl = 64, .protocol = IPPROTO_UDP, .id = bpf_get_prandom_u32(),
			.tot_len = bpf_htons(skb->len - ETH_HLEN), .saddr = underlay.word[3], .daddr = w->node.underlay.word[3],
		};
		__u32 sum = bpf_csum_diff(0, 0, (__be32 *)&ip, sizeof ip, 0);
		sum = (sum & 0xffff) + (sum >> 16);
		ip.check = ~(sum + (sum >> 16));
		struct outer4 o = {
			.eth = eth,
			.ip = ip,
			.udp = {h->from_port, bpf_htons(port), length, 0},
			.vxlan = {bpf_htonl(1 << 27), bpf_htonl(w->node.number << 8)},
			.inner = inner,
		};
		if (bpf_skb_store_bytes(skb, 0, &o, sizeof o, BPF_F_INVALIDATE_HASH))
			return TC_ACT_SHOT;
	}
	return bpf_redirect(w->interface, 0);
}

SEC("tc")
int from_task(struct __sk_buff *skb)
{
	struct key k = {.interface = skb->ifindex};
	struct headers h = {};
	if (!read(skb, &k, &h))
		return TC_ACT_UNSPEC;
	__u64 now = bpf_ktime_get_coarse_ns();
	int known = 0;
	struct flow *f = find(&k, &h, now, &known);
	if (!f) {
		if (!known && !h.ends)
			count(&k);
		return TC_ACT_UNSPEC;
	}
	if (f->way.at != now && !lead(skb, &h, f, now))
		return TC_ACT_UNSPEC;
	// Once: another processor may be at it, and there is room or there is none.
	const __u32 vxlan = *(volatile __u32 *)&f->way.node.number;
	__u32 size = skb->gso_size ? skb->gso_size + h.size : skb->len - ETH_HLEN;
	if (size > f->way.mtu)
		return TC_ACT_UNSPEC; // the kernel tells the sender
	if (vxlan && skb->len > 0xffff - sizeof(struct outer6))
		return TC_ACT_UNSPEC; // lengths have 16 bits
	if (vxlan && !room(skb, &h))
		return TC_ACT_UNSPEC;
	if (!hop(skb, &h, f->way.to_mac, f->way.from_mac) || (f->translated && !translate(skb, &h, &k, f)))
		return TC_ACT_SHOT;
	int action = vxlan ? wrap(skb, &h, &f->way) : bpf_redirect(f->way.interface, 0);
	if (!same(f, &k)) {
		f->way.at = 0; // it may be this packet's
		return TC_ACT_SHOT;
	}
	pass(0);
	return action;
}

SEC("tc")
int from_peer(struct __sk_buff *skb)
{
	struct key k = {};
	struct headers h = {};
	if (skb->pkt_type != PACKET_HOST || !read(skb, &k, &h))
		return TC_ACT_UNSPEC;
	int known;
	struct flow *f = find(&k, &h, bpf_ktime_get_coarse_ns(), &known);
	if (!f || !hop(skb, &h, f->to_mac, f->from_mac))
		return TC_ACT_UNSPEC;
	if (f->translated && !translate(skb, &h, &k, f))
		return TC_ACT_SHOT;
	__u32 interface = f->interface;
	if (!same(f, &k))
		return TC_ACT_SHOT;
	pass(1);
	return bpf_redirect_peer(interface, 0);
}
