package record

import "fmt"

// Volumes is the prefix of the volumes that slots of stateful services have, as
// the agents that made or mounted them know: NODE/NAME, NAME being the driver's.
// An agent writes the record before the first container can write to the
// volume, so what has data has a record.
const Volumes = "/volumes/"

// Volume is a slot's volume that can be reached from a node.
type Volume struct {
	Name      string `json:"name"` // in the driver
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Slot      int    `json:"slot"`
	Template  string `json:"template"` // its name in the service's spec
	// Reach is from where: every node whose Topology has these segments.
	Reach map[string]string `json:"reach"`
}

// NodeSegment is the segment of a node's Topology that is its own.
const NodeSegment = "orchestrate.node"

// SlotName is the name of a slot of a stateful service: a DNS label.
func SlotName(service string, slot int) string { return fmt.Sprintf("%s-%d", service, slot) }

// Fenced reports whether the task is of a slot that is run at most once.
func (t *Task) Fenced() bool { return t.Epoch > 0 }

// ReasonIneligible is why a task of a global service stops on a node that its
// constraints no longer allow.
const ReasonIneligible = "ineligible"

// ReasonFenced is why a node's spec changed when someone vouched for its end.
const ReasonFenced = "fenced"

// ReasonErase is the reason of a task that is there to delete a slot's volumes.
const ReasonErase = "erase"
