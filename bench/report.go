package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// table is a Markdown table.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w io.Writer) {
	line := func(cells []string) { fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | ")) }
	line(t.head)
	fmt.Fprintln(w, "|"+strings.Repeat("---|", len(t.head)))
	for _, r := range t.rows {
		line(r)
	}
	fmt.Fprintln(w)
}

// span is a duration with three digits.
func span(d time.Duration) string {
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%.3g s", d.Seconds())
	case d >= time.Millisecond:
		return digits(float64(d)/1e6) + " ms"
	}
	return digits(float64(d)/1e3) + " µs"
}

func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// amount is a number with a letter for its size.
func amount(v float64) string {
	switch {
	case v >= 1e9:
		return digits(v/1e9) + " G"
	case v >= 1e6:
		return digits(v/1e6) + " M"
	case v >= 1e3:
		return digits(v/1e3) + " k"
	}
	return digits(v)
}

func size(bytes float64) string {
	switch {
	case bytes >= 1<<30:
		return digits(bytes/(1<<30)) + " GiB"
	case bytes >= 1<<20:
		return digits(bytes/(1<<20)) + " MiB"
	case bytes >= 1<<10:
		return digits(bytes/(1<<10)) + " KiB"
	}
	return fmt.Sprintf("%.0f B", bytes)
}

func rate(n int, d time.Duration) float64 { return float64(n) / d.Seconds() }

// times is how many times as long a took as b.
func times(a, b time.Duration) string {
	if a <= 0 || b <= 0 {
		return "?"
	}
	return fmt.Sprintf("%.0f×", a.Seconds()/b.Seconds())
}
