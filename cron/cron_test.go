package cron_test

import (
	"fmt"
	"slices"
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

// TestChangeOfClocks pins what becomes of times where clocks change: by an hour or by
// half of one, in the night or at midnight, and by a whole day.
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
		{"half an hour", "Australia/Lord_Howe", "0 0 * * *", "2026-04-03T12:00:00Z",
			"04-04 00:00 +11, 04-05 00:00 +11, 04-06 00:00 +1030"},
		{"half an hour, the day after", "Australia/Lord_Howe", "0 */7 * * *", "2026-04-04T13:30:00Z",
			"04-05 07:00 +1030, 04-05 14:00 +1030, 04-05 21:00 +1030"},
		{"midnight is left out", "Asia/Beirut", "59 23 * * sun", "2026-03-23T12:00:00Z",
			"03-29 23:59 EEST, 04-05 23:59 EEST, 04-12 23:59 EEST"},
		{"midnight is left out, daily", "America/Havana", "@daily", "2026-03-06T12:00:00Z",
			"03-07 00:00 CST, 03-09 00:00 CDT, 03-10 00:00 CDT"},
		{"a minute after midnight", "America/St_Johns", "@daily", "2011-03-12T12:00:00Z",
			"03-13 00:00 NST, 03-14 00:00 NDT, 03-15 00:00 NDT"},
		{"a day is left out", "Pacific/Apia", "0 9 * * fri,sat", "2011-12-25T12:00:00Z",
			"12-31 09:00 +14, 01-06 09:00 +14, 01-07 09:00 +14"},
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
	for _, bad := range []string{"", "* * * *", "* * * * * *", "60 * * * *", "@sometimes", "@every soon", "@every -5m", "@every 0s", "@every 500ms", "@every 1500ms", "TZ=UTC * * * * *", "CRON_TZ=UTC * * * * *"} {
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

// Around each change of clocks, what fits is what the clocks show at some minute.
func TestEachMinute(t *testing.T) {
	fits := map[string]func(t time.Time) bool{
		"0 0 * * *":    func(t time.Time) bool { return t.Hour() == 0 && t.Minute() == 0 },
		"*/20 * * * *": func(t time.Time) bool { return t.Minute()%20 == 0 },
		"15 1-3 * * *": func(t time.Time) bool { return t.Minute() == 15 && t.Hour() >= 1 && t.Hour() <= 3 },
		"59 23 1 * *":  func(t time.Time) bool { return t.Hour() == 23 && t.Minute() == 59 && t.Day() == 1 },
		"0 */7 * * sun": func(t time.Time) bool {
			return t.Hour()%7 == 0 && t.Minute() == 0 && t.Weekday() == time.Sunday
		},
		"0 0 13 * fri": func(t time.Time) bool {
			return t.Hour() == 0 && t.Minute() == 0 && (t.Day() == 13 || t.Weekday() == time.Friday)
		},
		"30 12 * 3,10 *": func(t time.Time) bool {
			return t.Hour() == 12 && t.Minute() == 30 && (t.Month() == time.March || t.Month() == time.October)
		},
	}
	for _, name := range []string{
		"Europe/Berlin", "Europe/Dublin", "America/New_York", "America/St_Johns", "America/Havana", "America/Sao_Paulo",
		"America/Santiago", "Asia/Beirut", "Asia/Gaza", "Asia/Kathmandu", "Africa/Cairo", "Africa/Casablanca",
		"Antarctica/Troll", "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Chatham", "UTC",
	} {
		z := zone(t, name)
		change := time.Date(2009, 12, 1, 0, 0, 0, 0, time.UTC)
		for range 4 {
			if _, end := change.In(z).ZoneBounds(); !end.IsZero() {
				change = end
			} else {
				change = change.AddDate(0, 3, 17)
			}
			from, until := change.AddDate(0, 0, -9), change.AddDate(0, 0, 9)
			for expression, fits := range fits {
				var want, got []string
				for at := from.Truncate(time.Minute).Add(time.Minute); at.Before(until); at = at.Add(time.Minute) {
					if fits(at.In(z)) {
						want = append(want, at.In(z).String())
					}
				}
				next, err := cron.Parse(expression, z)
				if err != nil {
					t.Fatal(err)
				}
				for at := next(from); !at.IsZero() && at.Before(until) && len(got) <= len(want); at = next(at) {
					got = append(got, at.String())
				}
				if !slices.Equal(got, want) {
					t.Errorf("%q in %s around %s:\ngot  %s\nwant %s", expression, name, change, got, want)
				}
			}
		}
	}
}
