package cron_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/cron"
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// TestChangeOfClocks pins what the parser does where clocks change, in two zones
// whose changes are on other days and in other directions of the same month.
func TestChangeOfClocks(t *testing.T) {
	for _, tt := range []struct{ name, zone, expression, from, want string }{
		{"a time that does not exist is left out", "Europe/Berlin", "30 2 * * *", "2026-03-27T12:00:00Z",
			"03-28 02:30 CET, 03-30 02:30 CEST, 03-31 02:30 CEST"},
		{"a time that comes twice fits twice", "Europe/Berlin", "30 2 * * *", "2026-10-24T12:00:00Z",
			"10-25 02:30 CEST, 10-25 02:30 CET, 10-26 02:30 CET"},
		{"left out across the sea", "America/New_York", "30 2 * * *", "2026-03-07T12:00:00Z",
			"03-09 02:30 EDT, 03-10 02:30 EDT, 03-11 02:30 EDT"},
		{"twice across the sea", "America/New_York", "30 1 * * *", "2026-10-31T12:00:00Z",
			"11-01 01:30 EDT, 11-01 01:30 EST, 11-02 01:30 EST"},
		{"every hour that passes", "Europe/Berlin", "@hourly", "2026-03-29T00:30:00Z",
			"03-29 03:00 CEST, 03-29 04:00 CEST, 03-29 05:00 CEST"},
		{"no change in UTC", "UTC", "30 2 * * *", "2026-03-28T12:00:00Z",
			"03-29 02:30 UTC, 03-30 02:30 UTC, 03-31 02:30 UTC"},
		{"intervals know no clocks", "Europe/Berlin", "@every 90m", "2026-03-29T00:00:00Z",
			"03-29 03:30 CEST, 03-29 05:00 CEST, 03-29 06:30 CEST"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			next, err := cron.Parse(tt.expression, zone(t, tt.zone))
			if err != nil {
				t.Fatal(err)
			}
			at, err := time.Parse(time.RFC3339, tt.from)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for range 3 {
				at = next(at)
				got = append(got, at.Format("01-02 15:04 MST"))
			}
			if got := strings.Join(got, ", "); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, bad := range []string{"", "* * * *", "* * * * * *", "60 * * * *", "@sometimes", "@every soon", "TZ=UTC * * * * *", "CRON_TZ=UTC * * * * *"} {
		if _, err := cron.Parse(bad, time.UTC); err == nil {
			t.Errorf("%q was read; want an error", bad)
		}
	}
}

func TestNever(t *testing.T) {
	next, err := cron.Parse("0 0 30 2 *", time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	if at := next(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)); !at.IsZero() {
		t.Errorf("the 30th of February is %v; want the zero time", at)
	}
}

func ExampleParse() {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		panic(err)
	}
	next, err := cron.Parse("0 3 * * mon", berlin)
	if err != nil {
		panic(err)
	}
	fmt.Println(next(time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)).UTC())
	// Output: 2026-07-06 01:00:00 +0000 UTC
}
