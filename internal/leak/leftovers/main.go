//go:build linux

// Leftovers says what tests have left on the machine: run it with -save before
// them and with -check after.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/orchestrate-go/orchestrate/internal/leak"
)

func main() {
	save := flag.String("save", "", "file to write what is there now to")
	check := flag.String("check", "", "file written before, to compare with")
	flag.Parse()
	if err := run(*save, *check); err != nil {
		fmt.Fprintln(os.Stderr, "leftovers:", err)
		os.Exit(1)
	}
}

func run(save, check string) error {
	now, err := leak.Look()
	if err != nil {
		return err
	}
	if save != "" {
		text, err := now.MarshalText()
		if err != nil {
			return err
		}
		return os.WriteFile(save, text, 0o600)
	}
	text, err := os.ReadFile(check)
	if err != nil {
		return err
	}
	var before leak.Machine
	if err := before.UnmarshalText(text); err != nil {
		return err
	}
	if left := now.Since(before); len(left) > 0 {
		return fmt.Errorf("left on the machine: %q", left)
	}
	return nil
}
