package cron

import (
	"time"

	"github.com/robfig/cron/v3"
)

// years is for how many years a time that fits is looked for.
const years = 5

// wildcard is the bit by which the parser marks a field that is not restricted.
const wildcard = 1 << 63

// after returns the first time after t at which the clocks of a zone show what fits.
//
// The parser has a Next of its own, which goes from hour to hour and midnight to
// midnight in the zone. It loses days where clocks change by half an hour or at
// midnight, and does not end where a zone has left out a day. This one looks at
// the times between two changes of the clocks, which are as regular as those of
// UTC, and then at those after the next change.
func after(s *cron.SpecSchedule, t time.Time, zone *time.Location) time.Time {
	t = t.In(zone)
	last := t.Year() + years
	// Clocks show whole minutes: of a time that is one, the next.
	from := shown(t).Truncate(time.Minute).Add(time.Minute)
	for {
		_, offset := t.Zone()
		_, change := t.ZoneBounds()
		until := time.Time{}
		if !change.IsZero() {
			until = shown(change.Add(-1).In(zone))
		}
		fits := fit(s, from, until, last)
		if !fits.IsZero() {
			return fits.Add(-time.Duration(offset) * time.Second).In(zone)
		}
		if change.IsZero() || change.Year() > last {
			return time.Time{}
		}
		t = change.In(zone)
		if from = shown(t); !from.Equal(from.Truncate(time.Minute)) {
			from = from.Truncate(time.Minute).Add(time.Minute)
		}
	}
}

// shown is what the clocks of t's zone show, as a time of UTC.
func shown(t time.Time) time.Time {
	_, offset := t.Zone()
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

// fit returns the first whole minute of from and later that fits; zero when there
// is none up to until, which is no bound when zero, or the end of the year last.
func fit(s *cron.SpecSchedule, from, until time.Time, last int) time.Time {
	for t := from; t.Year() <= last && (until.IsZero() || !t.After(until)); {
		year, month, day := t.Date()
		switch {
		case s.Month&(1<<uint(month)) == 0:
			t = time.Date(year, month+1, 1, 0, 0, 0, 0, time.UTC)
		case !dayFits(s, t):
			t = time.Date(year, month, day+1, 0, 0, 0, 0, time.UTC)
		case s.Hour&(1<<uint(t.Hour())) == 0:
			t = t.Truncate(time.Hour).Add(time.Hour)
		case s.Minute&(1<<uint(t.Minute())) == 0:
			t = t.Add(time.Minute)
		default:
			return t
		}
	}
	return time.Time{}
}

// dayFits is true if either field of days fits, where both are restricted, and else
// if both do.
func dayFits(s *cron.SpecSchedule, t time.Time) bool {
	ofMonth, ofWeek := s.Dom&(1<<uint(t.Day())) != 0, s.Dow&(1<<uint(t.Weekday())) != 0
	if s.Dom&wildcard != 0 || s.Dow&wildcard != 0 {
		return ofMonth && ofWeek
	}
	return ofMonth || ofWeek
}
