package scheduler

// Request asks for places for Count replicas that are alike: one group, which
// is decided in one go. It is plain data; the zero value of each field asks
// for nothing and forbids nothing.
type Request struct {
	// Namespace and Service say whose replicas these are. Spreading and
	// MaxPerNode count tasks of the same namespace and service together,
	// whatever else their requests say.
	Namespace string `json:"namespace,omitempty"`
	Service   string `json:"service"`
	// Labels are what the affinity of other requests can select.
	Labels map[string]string `json:"labels,omitempty"`

	// Count is the number of replicas to place now, from 0 to MaxCount.
	Count int `json:"count"`
	// Tasks are the ids that the replicas get. When nil, ids are made from
	// the service's name and a number that counts up for as long as the
	// service is known: web.1, web.2.
	Tasks []string `json:"tasks,omitempty"`

	// Resources are what each replica takes on its node.
	Resources Resources `json:"resources,omitzero"`
	// Ports are taken on the node's own addresses by each replica.
	Ports []HostPort `json:"ports,omitempty"`
	// Volumes must all be reachable from the node.
	Volumes []Volume `json:"volumes,omitempty"`
	// Drivers must all be among the node's.
	Drivers []string `json:"drivers,omitempty"`
	// Platforms are those that the image was built for; any one will do.
	Platforms []Platform `json:"platforms,omitempty"`
	// Images are preferred to be on the node already.
	Images []string `json:"images,omitempty"`

	// Constraints must all hold; see [ParseConstraint].
	Constraints []Constraint `json:"constraints,omitempty"`
	// Tolerations let the replicas onto nodes with these taints.
	Tolerations []Toleration `json:"tolerations,omitempty"`
	// Affinity puts the replicas where other tasks are.
	Affinity []Affinity `json:"affinity,omitempty"`
	// AntiAffinity puts the replicas where other tasks are not. A required
	// one holds both ways: tasks placed later respect it too.
	AntiAffinity []Affinity `json:"antiAffinity,omitempty"`
	// Spread evens out the service over topology domains, outermost first.
	Spread []SpreadKey `json:"spread,omitempty"`
	// MaxPerNode bounds the service's tasks on one node; 0 is no bound.
	MaxPerNode int `json:"maxPerNode,omitempty"`

	// Priority orders requests in one Place, higher first, and says whom a
	// preemption may stop: tasks of lower priority.
	Priority int32 `json:"priority,omitempty"`
	// Gang makes the group all or nothing.
	Gang *Gang `json:"gang,omitempty"`
	// Strategy is a name registered with the Scheduler; empty is its default.
	Strategy string `json:"strategy,omitempty"`

	// Prefer names nodes to go back to, for the data they hold; Avoid names
	// nodes to stay away from while there are others.
	Prefer []string `json:"prefer,omitempty"`
	Avoid  []string `json:"avoid,omitempty"`
	// Failures counts the service's recent failures by node. What is recent
	// is the caller's to say: there is no clock in here.
	Failures map[string]int `json:"failures,omitempty"`
}

// MaxCount is the largest group that one Request may ask for.
const MaxCount = 1 << 24

// HostPort is a port on the node's own address, taken by one task.
type HostPort struct {
	Port uint16 `json:"port"`
	// Protocol is tcp (also when empty), udp or sctp.
	Protocol string `json:"protocol,omitempty"`
	// IP is the node's address to take it on; empty is every address.
	IP string `json:"ip,omitempty"`
}

// Volume is storage that a replica needs.
type Volume struct {
	Name string `json:"name"`
	// Accessible lists from where the volume can be reached: a node will do
	// if its Topology has every segment of at least one entry. Empty is
	// everywhere. This is CSI's accessible_topology.
	Accessible []map[string]string `json:"accessible,omitempty"`
}

// Toleration lets tasks onto nodes with a taint.
type Toleration struct {
	// Key is the taint's; empty tolerates every taint.
	Key string `json:"key,omitempty"`
	// Value is the taint's; empty tolerates every value.
	Value string `json:"value,omitempty"`
}

func (t Toleration) tolerates(x Taint) bool {
	return (t.Key == "" || t.Key == x.Key) && (t.Value == "" || t.Value == x.Value)
}

// Affinity selects tasks and says in which neighbourhood of them to be, or for
// AntiAffinity not to be.
type Affinity struct {
	// Topology is the key whose equal values make a neighbourhood, such as
	// node.labels.zone. Empty means the node itself.
	Topology string `json:"topology,omitempty"`
	// Service selects the tasks of a service in the request's namespace;
	// Labels those that have all of these labels. At least one is needed.
	Service string            `json:"service,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Preferred makes it a wish instead of a rule.
	Preferred bool `json:"preferred,omitempty"`
}

// SpreadKey is one level of the tree that a service is spread over.
type SpreadKey struct {
	// Key is a node attribute, such as node.labels.zone.
	Key string `json:"key"`
	// Weights give some domains a larger part: {"eu": 2} puts two tasks in eu
	// for one elsewhere. Domains that are not named weigh 1.
	Weights map[string]float64 `json:"weights,omitempty"`
	// MaxSkew, when above 0, makes it a rule: no domain may end up with more
	// than MaxSkew tasks above the emptiest domain beside it (those under the
	// same parent that have at least one node the static filters allow), and
	// nodes without the key are refused. It can not be had with Weights.
	MaxSkew int `json:"maxSkew,omitempty"`
}

// Gang makes a group all or nothing.
type Gang struct {
	// Name, when not empty, joins several requests of one Place: all reach
	// their Min, or none is placed.
	Name string `json:"name,omitempty"`
	// Min is how many replicas are enough; 0 means all.
	Min int `json:"min,omitempty"`
}

// name is how messages call the group.
func (r *Request) name() string {
	if r.Namespace == "" {
		return r.Service
	}
	return r.Namespace + "/" + r.Service
}
