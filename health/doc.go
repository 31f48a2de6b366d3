// Package health decides whether containers are healthy.
//
// A [Check] is a probe as data, a [Checker] runs one probe, and a [Monitor]
// runs the probes of a whole node and reports changes.
package health
