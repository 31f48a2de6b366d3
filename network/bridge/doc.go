// Package bridge is the network of a node in the Linux kernel.
package bridge
