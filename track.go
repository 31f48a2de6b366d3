package orchestrate

import (
	"cmp"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
)

// TrackPolicy has the tags of a service's images followed: when one comes to
// mean another image, that becomes a new revision, rolled out like any other
// and rolled back when it fails. What has failed so is not tried again. While a
// rollout goes on, nothing is followed. It needs [WithResolver], and a registry:
// images that are on nodes alone are not looked at.
type TrackPolicy struct {
	// Every is how often registries are asked, at least 10 s; 0 is never.
	// Services that ask equally often do so at different moments.
	Every time.Duration `json:"every,omitempty"`
	// Windows are when they are asked, and so when a rollout may begin, at most
	// 16; always when empty. At least once in each they are.
	Windows []Window `json:"windows,omitempty"`
}

// Window is a time that comes again every day, or on some days of the week.
type Window struct {
	// Days on which it begins: of "mon", "tue", "wed", "thu", "fri", "sat" and
	// "sun"; every day when empty.
	Days []string `json:"days,omitempty"`
	// Start is the time of day at which it begins, such as "02:30".
	Start string `json:"start"`
	// Length is from a minute to a day.
	Length time.Duration `json:"length"`
	// Zone is a time zone's name in the IANA database, such as
	// "Europe/Berlin"; UTC when empty. A start that the zone's clock leaves out
	// is as much later as it leaves out, one that it shows twice is the first.
	Zone string `json:"zone,omitempty"`
}

// weekdays are the words for days, by time.Weekday.
var weekdays = [...]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

const (
	leastTrack  = 10 * time.Second
	leastWindow = time.Minute
	mostWindow  = 24 * time.Hour
	maxWindows  = 16
)

func (c *checks) track(p *TrackPolicy) {
	if p.Every != 0 {
		c.duration("track.every", p.Every, leastTrack)
	}
	if p.Every == 0 && len(p.Windows) > 0 {
		c.add("track.windows", nil, "are of no use without track.every; say how often tags are looked up in them")
	}
	if len(p.Windows) > maxWindows {
		c.add("track.windows", nil, "are %d; at most %d", len(p.Windows), maxWindows)
		return
	}
	for i, w := range p.Windows {
		path := at("track.windows", i)
		seen := map[string]string{}
		for j, d := range w.Days {
			if !slices.Contains(weekdays[:], d) {
				c.add(at(path+".days", j), d, "is not a day; use one of %s", list(weekdays[:]))
			}
			c.unique(seen, at(path+".days", j), d)
		}
		if _, err := time.Parse("15:04", w.Start); err != nil || len(w.Start) != len("15:04") {
			c.add(path+".start", w.Start, "is not a time of day; write such as \"02:30\"")
		}
		if w.Length < leastWindow || w.Length > mostWindow {
			c.add(path+".length", w.Length, "is out of range; from %v to %v", leastWindow, mostWindow)
		}
		if _, err := time.LoadLocation(w.Zone); err != nil || w.Zone == "Local" {
			c.add(path+".zone", w.Zone, "is not a time zone; use a name of the IANA database, such as \"Europe/Berlin\", or none for UTC")
		}
	}
}

// openings returns the times around t at which w begins, in order, with one
// before t and some after it if there are any at all.
func (w *Window) openings(t time.Time) []time.Time {
	zone, err := time.LoadLocation(w.Zone)
	if err != nil {
		zone = time.UTC // the machine has lost its database
	}
	start, err := time.Parse("15:04", w.Start)
	if err != nil {
		return nil // Validate has refused it
	}
	var all []time.Time
	y, m, d := t.In(zone).Date()
	for day := -8; day <= 8; day++ {
		at := time.Date(y, m, d+day, start.Hour(), start.Minute(), 0, 0, zone)
		// Of two times that show the same, time.Date may choose either.
		for _, set := range []time.Duration{30 * time.Minute, time.Hour, 2 * time.Hour} {
			if first := at.Add(-set); first.Format(time.DateTime) == at.Format(time.DateTime) {
				at = first
			}
		}
		if len(w.Days) == 0 || slices.Contains(w.Days, weekdays[time.Date(y, m, d+day, 12, 0, 0, 0, zone).Weekday()]) {
			all = append(all, at)
		}
	}
	return all
}

// next returns when the tags of the service of that key are looked up for the
// first time after now; never is zero. It depends on nothing else: a leader
// that takes over keeps to it.
func (p *TrackPolicy) next(key string, now time.Time) time.Time {
	if p.Every <= 0 {
		return time.Time{}
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(key)) // never fails
	shift := time.Duration(h.Sum64() % uint64(p.Every))
	if len(p.Windows) == 0 {
		return nextOf(now.Truncate(p.Every).Add(shift-p.Every), p.Every, now)
	}
	first := time.Time{}
	for i := range p.Windows {
		w := &p.Windows[i]
		for _, open := range w.openings(now) {
			// So many services may wait for one night.
			at := nextOf(open.Add(shift%min(w.Length, p.Every)), p.Every, now)
			if at.Before(open.Add(w.Length)) && (first.IsZero() || at.Before(first)) {
				first = at
			}
		}
	}
	return first
}

// nextOf returns the first of the times from, from+every, … that is after now.
func nextOf(from time.Time, every time.Duration, now time.Time) time.Time {
	if from.After(now) {
		return from
	}
	return from.Add((now.Sub(from)/every + 1) * every)
}

// ImageMove is a tag that has come to mean another image.
type ImageMove struct {
	Ref      string // as the service names it
	From, To string // digests; From is empty where none was known
}

// tags returns the references of s that can come to mean something else.
func tags(s *Service) []string {
	return slices.Sorted(maps.Keys(references(&s.Template)))
}

// verdict is what is to be done about what tags mean now.
type verdict struct {
	moves   []ImageMove
	digests map[string]string // of all that moved
	// failed says that the revision which that would make has failed before.
	failed bool
}

// judgeTags decides by what tags mean now, as far as that is known. When asked
// for by a person, what they meant is compared with what runs; otherwise with
// what they meant when that was last acted upon, so that whoever rolled back
// from an image is not given it again.
func judgeTags(s *Service, rec *record.Service, found map[string]string, asked bool) verdict {
	var v verdict
	all := maps.Clone(rec.Digests)
	if all == nil {
		all = map[string]string{}
	}
	for _, ref := range tags(s) {
		now, before := found[ref], rec.Digests[ref]
		if !asked {
			before = cmp.Or(rec.Seen[ref], before)
		}
		if now == "" || now == before {
			continue
		}
		if v.digests == nil {
			v.digests = map[string]string{}
		}
		v.digests[ref], all[ref] = now, now
		if now != rec.Digests[ref] {
			v.moves = append(v.moves, ImageMove{Ref: ref, From: rec.Digests[ref], To: now})
		}
	}
	if len(v.moves) == 0 {
		return v
	}
	hash := s.Template.pinned(all).Hash()
	for _, old := range rec.History {
		v.failed = v.failed || !asked && old.Failed && old.Hash == hash
	}
	return v
}

// always is how a tag is looked up that is followed.
var always = runtime.PullOptions{Policy: runtime.PullAlways}
