package record

// Rights are the keys that the agent of a node reads and writes; one that ends in
// a slash stands for all keys that begin with it. What it writes it may read.
func Rights(node string) (read, write []string) {
	read = []string{Key(Tasks, node, ""), Frontends, Endpoints, Networks, Acks, Fleet}
	write = []string{
		Key(Nodes, node), Key(Alive, node), Key(Usages, node), Key(Acks, node),
		Key(Statuses, node, ""), Key(Endpoints, node, ""), Key(Volumes, node, ""), Key(Kept+"node/", node, ""),
	}
	return read, write
}
