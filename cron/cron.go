// Package cron reads cron expressions for the schedules of
// [github.com/orchestrate-go/orchestrate.CronJob]. It is apart from the core
// because it brings a parser of others' keeping; package local uses it, and
// other fleets with orchestrate.WithSchedules(cron.Parse).
package cron

import (
	"errors"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // zones are known by name on every machine, and are the same in all control planes of a build

	"github.com/robfig/cron/v3"
)

// Parse reads an expression: five fields (minute, hour, day of the month, month,
// day of the week) with *, lists, ranges, steps and English names, or one of
// @hourly, @daily, @weekly, @monthly, @yearly, or "@every 90m", of whole seconds.
// As in cron(8), a day fits when either field of days does, if both are restricted.
//
// Next returns the first time after its argument that fits in the zone, or the
// zero time when there is none within five years. At a change of the clocks:
//   - A time that does not exist is left out, such as 02:30 in the night in which
//     02:00 becomes 03:00.
//   - A time that comes twice fits twice.
//   - @every counts time that passes, and knows no clocks.
func Parse(expression string, zone *time.Location) (next func(time.Time) time.Time, err error) {
	if strings.HasPrefix(expression, "TZ=") || strings.HasPrefix(expression, "CRON_TZ=") {
		return nil, errors.New("has a time zone in it; it has a field of its own")
	}
	schedule, err := cron.ParseStandard(expression)
	if err != nil {
		return nil, err
	}
	// The parser takes what is shorter, and less than nothing, for a second.
	if every, ok := strings.CutPrefix(expression, "@every "); ok {
		if d, err := time.ParseDuration(every); err != nil || d < time.Second || d%time.Second != 0 {
			return nil, fmt.Errorf("has the interval %s, which is none of whole seconds; give 1s or more", every)
		}
	}
	if fields, ok := schedule.(*cron.SpecSchedule); ok {
		return func(t time.Time) time.Time { return after(fields, t, zone) }, nil
	}
	return func(t time.Time) time.Time { return schedule.Next(t.In(zone)) }, nil
}
