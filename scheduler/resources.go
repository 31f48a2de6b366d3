package scheduler

import (
	"fmt"
	"strings"
)

// MaxAmount is the largest amount of any one resource that a node may offer or
// a task may ask for: 2^53, beyond which a JSON number loses integers. It also
// leaves room for a thousand such tasks on one node before a sum of int64 ends.
const MaxAmount = 1 << 53

// Resources is an amount of each thing that a node has and a task takes. The
// zero value is nothing. The units are the ones that containers use.
type Resources struct {
	// CPU is in thousandths of a core: 1500 is one and a half.
	CPU int64 `json:"cpu,omitempty"`
	// Memory is in bytes.
	Memory int64 `json:"memory,omitempty"`
	// Disk is in bytes.
	Disk int64 `json:"disk,omitempty"`
	// Devices are whole things that are counted: GPUs, licences, dongles.
	Devices []Device `json:"devices,omitempty"`
}

// Device is a number of interchangeable things of one kind and model, such as
// 4 gpu of model a100. In a request an empty Model means any one model.
type Device struct {
	Kind  string `json:"kind"`
	Model string `json:"model,omitempty"`
	Count int64  `json:"count"`
}

// dims is the number of resources that every node has: CPU, memory and disk.
const dims = 3

var dimNames = [dims]string{"cpu", "memory", "disk"}

type vector [dims]int64

func (r *Resources) vector() vector { return vector{r.CPU, r.Memory, r.Disk} }

// Validate reports the first amount that is negative or larger than MaxAmount,
// and a device without a kind or named twice, as an *InvalidError.
func (r *Resources) Validate() error {
	for d, v := range r.vector() {
		if v < 0 || v > MaxAmount {
			return invalid("resources."+dimNames[d], v, fmt.Sprintf("an amount from 0 to %d", int64(MaxAmount)))
		}
	}
	for i, d := range r.Devices {
		if d.Kind == "" {
			return invalid(fmt.Sprintf("resources.devices[%d].kind", i), d.Kind, "a name such as gpu")
		}
		if d.Count < 0 || d.Count > MaxAmount {
			return invalid(fmt.Sprintf("resources.devices[%d].count", i), d.Count, fmt.Sprintf("a count from 0 to %d", int64(MaxAmount)))
		}
		for _, e := range r.Devices[:i] {
			if e.Kind == d.Kind && e.Model == d.Model {
				return invalid(fmt.Sprintf("resources.devices[%d]", i), d.Kind+"/"+d.Model, "each kind and model once")
			}
		}
	}
	return nil
}

// IsZero reports whether r asks for nothing.
func (r *Resources) IsZero() bool {
	if r.vector() != (vector{}) {
		return false
	}
	for _, d := range r.Devices {
		if d.Count != 0 {
			return false
		}
	}
	return true
}

// String writes r as a person would: "500m cpu, 2 GiB memory".
func (r Resources) String() string {
	var parts []string
	for d, v := range r.vector() {
		if v != 0 {
			parts = append(parts, amount(d, v)+" "+dimNames[d])
		}
	}
	for _, d := range r.Devices {
		parts = append(parts, fmt.Sprintf("%d %s", d.Count, d.name()))
	}
	if parts == nil {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

func (d Device) name() string {
	if d.Model == "" {
		return d.Kind
	}
	return d.Kind + "/" + d.Model
}

// amount writes v of dimension d with its unit.
func amount(d int, v int64) string {
	if d == 0 {
		if v%1000 == 0 {
			return fmt.Sprintf("%d", v/1000)
		}
		return fmt.Sprintf("%dm", v)
	}
	return bytesText(v)
}

func bytesText(v int64) string {
	neg := ""
	if v < 0 {
		neg, v = "-", -v
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f, u := float64(v), 0
	for f >= 1024 && u < len(units)-1 {
		f /= 1024
		u++
	}
	s := fmt.Sprintf("%.1f", f)
	return neg + strings.TrimSuffix(s, ".0") + " " + units[u]
}
