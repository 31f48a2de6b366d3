//go:build linux

package cluster

import (
	"fmt"
	"net/netip"

	"github.com/orchestrate-go/orchestrate/identity"
)

// OptionError is an option that is missing or wrong. Nothing was changed.
type OptionError struct{ Option, Reason string }

// Error names the option and what would be right.
func (e *OptionError) Error() string { return fmt.Sprintf("option %s %s", e.Option, e.Reason) }

// checkAddr refuses what is no address that other machines reach this one by.
func checkAddr(option string, a netip.Addr) error {
	switch {
	case !a.IsValid():
		return &OptionError{option, "is not set; give the address by which the other machines reach it"}
	case a.IsUnspecified(), a.IsMulticast(), a.Zone() != "":
		return &OptionError{option, fmt.Sprintf("is %v; want an address by which the other machines reach it", a)}
	}
	return nil
}

func checkAddrs(option string, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return &OptionError{option, "is empty; give the addresses of the control planes"}
	}
	for i, a := range addrs {
		if err := checkAddr(fmt.Sprintf("%s[%d]", option, i), a); err != nil {
			return err
		}
	}
	return nil
}

func checkName(role identity.Role, name string) error {
	if err := (identity.ID{Role: role, Name: name}).Validate(); err != nil {
		return &OptionError{"Name", "is not good: " + err.Error()}
	}
	return nil
}
