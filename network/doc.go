// Package network is the interface between an agent and the kernel's
// networking on its node.
//
// A [Driver] attaches tasks to networks, a [Balancer] spreads connections for
// virtual addresses and published ports over ready endpoints, and
// [Namespaces] makes the network namespaces that tasks live in. A [Pool]
// hands out addresses. Drivers are network/bridge, for one node, and
// network/memory, for tests; network/networktest is the suite that they pass
// and that any other driver can run. network/dns answers names.
package network
