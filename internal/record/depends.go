package record

import "strings"

// WhyDependency is why a rollout or a run failed that what it depends on was
// waited for too long, or has failed.
const WhyDependency = "dependency"

// Unmet is a dependency that does not hold.
type Unmet struct {
	Dependency string `json:"dependency"` // such as "service default/db"
	Why        string `json:"why"`        // such as "does not exist"
}

// Waits says for what, and why.
func Waits(unmet []Unmet) string {
	var b strings.Builder
	for i, u := range unmet {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(u.Dependency + " " + u.Why)
	}
	return b.String()
}
