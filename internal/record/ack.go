package record

// Acks hold, for each node that is registered, how far its balancer and names
// follow the endpoints of others: NODE  agent  Ack (leased).
const Acks = "/acks/"

// Ack is what a node's balancer and names have taken in.
type Ack struct {
	// Revision is that of the newest change of endpoints which is programmed. It is
	// written anew when an endpoint asks for it; see Endpoint.Leaving.
	Revision int64 `json:"revision"`
}
