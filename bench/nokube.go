//go:build !kube

package main

// otherPeers are those behind build tags.
var otherPeers []contender
