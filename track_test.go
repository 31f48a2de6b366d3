package orchestrate

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

func TestWindows(t *testing.T) {
	for name, tc := range map[string]struct {
		policy TrackPolicy
		now    string
		want   string // the window in which the next look is: FROM/UNTIL
	}{
		"in an hour at most": {TrackPolicy{Every: time.Hour}, "2026-03-10T12:00:00Z", "2026-03-10T12:00:00Z/2026-03-10T13:00:00Z"},
		"the night to come": {
			TrackPolicy{Every: time.Hour, Windows: []Window{{Start: "02:00", Length: 2 * time.Hour}}},
			"2026-03-10T12:00:00Z", "2026-03-11T02:00:00Z/2026-03-11T04:00:00Z",
		},
		"the night that is": {
			TrackPolicy{Every: time.Minute, Windows: []Window{{Start: "23:00", Length: 4 * time.Hour}}},
			"2026-03-11T01:00:00Z", "2026-03-11T01:00:00Z/2026-03-11T01:01:00Z",
		},
		"an interval longer than the window": {
			TrackPolicy{Every: 7 * 24 * time.Hour, Windows: []Window{{Start: "02:00", Length: time.Minute}}},
			"2026-03-10T12:00:00Z", "2026-03-11T02:00:00Z/2026-03-11T02:01:00Z",
		},
		"a day of the week": { // the 10th is a Tuesday
			TrackPolicy{Every: time.Hour, Windows: []Window{{Days: []string{"sun"}, Start: "02:00", Length: time.Hour}}},
			"2026-03-10T12:00:00Z", "2026-03-15T02:00:00Z/2026-03-15T03:00:00Z",
		},
		"the earlier of two": {
			TrackPolicy{Every: time.Hour, Windows: []Window{{Start: "02:00", Length: time.Hour}, {Start: "20:00", Length: time.Hour}}},
			"2026-03-10T12:00:00Z", "2026-03-10T20:00:00Z/2026-03-10T21:00:00Z",
		},
		"a zone": {
			TrackPolicy{Every: time.Hour, Windows: []Window{{Start: "02:00", Length: time.Hour, Zone: "America/New_York"}}},
			"2026-01-10T12:00:00Z", "2026-01-11T07:00:00Z/2026-01-11T08:00:00Z",
		},
		"a start that the clock leaves out": { // Berlin, 29 March 2026: 02:00 is 03:00
			TrackPolicy{Every: time.Hour, Windows: []Window{{Start: "02:30", Length: time.Hour, Zone: "Europe/Berlin"}}},
			"2026-03-28T12:00:00Z", "2026-03-29T01:30:00Z/2026-03-29T02:30:00Z",
		},
		"a start that the clock shows twice": { // Berlin, 25 October 2026: 03:00 is 02:00
			TrackPolicy{Every: time.Hour, Windows: []Window{{Start: "02:30", Length: time.Hour, Zone: "Europe/Berlin"}}},
			"2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z/2026-10-25T01:30:00Z",
		},
	} {
		t.Run(name, func(t *testing.T) {
			now, from, until := parse(t, tc.now), parse(t, tc.want[:20]), parse(t, tc.want[21:])
			for _, key := range []string{"/services/a/b", "/services/c/d", "/services/default/web", "x"} {
				if got := tc.policy.next(key, now); got.Before(from) || got.After(until) || !got.After(now) {
					t.Errorf("next of %s is %v, want it from %v to %v", key, got, from, until)
				}
			}
		})
	}
	if got := (&TrackPolicy{}).next("x", time.Now()); !got.IsZero() {
		t.Errorf("without Every the next look is at %v, want never", got)
	}
}

func parse(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// However it is asked, the look that follows is the same one, it is in a
// window, and each window has one.
func TestLooksAreInTheirWindows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := TrackPolicy{Every: time.Duration(rapid.Int64Range(int64(leastTrack), int64(48*time.Hour)).Draw(t, "every"))}
		for range rapid.IntRange(0, 3).Draw(t, "windows") {
			w := Window{
				Start:  fmt.Sprintf("%02d:%02d", rapid.IntRange(0, 23).Draw(t, "hour"), rapid.IntRange(0, 59).Draw(t, "minute")),
				Length: time.Duration(rapid.Int64Range(int64(leastWindow), int64(mostWindow)).Draw(t, "length")),
				Zone:   rapid.SampledFrom([]string{"", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"}).Draw(t, "zone"),
			}
			if rapid.Bool().Draw(t, "weekly") {
				w.Days = []string{rapid.SampledFrom(weekdays[:]).Draw(t, "day")}
			}
			p.Windows = append(p.Windows, w)
		}
		key := rapid.StringN(1, 20, -1).Draw(t, "key")
		now := time.Unix(rapid.Int64Range(1_700_000_000, 1_900_000_000).Draw(t, "now"), 0).UTC()
		next := p.next(key, now)
		if !next.After(now) {
			t.Fatalf("next after %v is %v", now, next)
		}
		between := now.Add(time.Duration(rapid.Int64Range(0, int64(next.Sub(now))-1).Draw(t, "later")))
		if again := p.next(key, between); !again.Equal(next) && between.Before(next) {
			t.Fatalf("next after %v is %v, but after %v it is %v", now, next, between, again)
		}
		if len(p.Windows) == 0 {
			if next.Sub(now) > p.Every {
				t.Fatalf("next after %v is %v, more than %v later", now, next, p.Every)
			}
			return
		}
		inside := false
		for i := range p.Windows {
			w := &p.Windows[i]
			for _, open := range w.openings(next) {
				inside = inside || !next.Before(open) && next.Before(open.Add(w.Length))
				if open.After(now) && !open.Add(w.Length).After(next) {
					t.Fatalf("the window from %v for %v has no look: the next after %v is %v", open, w.Length, now, next)
				}
			}
		}
		if !inside {
			t.Fatalf("%v is in no window of %+v", next, p.Windows)
		}
	})
}

func TestJudgeTags(t *testing.T) {
	s := Service{Template: Template{Containers: []Container{{Image: "a:1"}, {Image: "b:1"}, {Image: "c@sha256:1"}}}}
	hash := func(a, b string) string {
		return s.Template.pinned(map[string]string{"a:1": a, "b:1": b}).Hash()
	}
	for name, tc := range map[string]struct {
		rec    record.Service
		found  map[string]string
		asked  bool
		want   string
		failed bool
	}{
		"nothing moved":           {record.Service{Digests: map[string]string{"a:1": "A", "b:1": "B"}}, map[string]string{"a:1": "A", "b:1": "B"}, false, "[]", false},
		"one of two":              {record.Service{Digests: map[string]string{"a:1": "A", "b:1": "B"}}, map[string]string{"a:1": "A2", "b:1": "B"}, false, "[{a:1 A A2}]", false},
		"one that did not answer": {record.Service{Digests: map[string]string{"a:1": "A", "b:1": "B"}}, map[string]string{"b:1": "B2"}, false, "[{b:1 B B2}]", false},
		"never pinned":            {record.Service{}, map[string]string{"a:1": "A"}, false, "[{a:1  A}]", false},
		"one that was left behind by a rollback": {
			record.Service{Digests: map[string]string{"a:1": "A"}, Seen: map[string]string{"a:1": "A2"}}, map[string]string{"a:1": "A2"}, false, "[]", false,
		},
		"the same, asked for by a person": {
			record.Service{Digests: map[string]string{"a:1": "A"}, Seen: map[string]string{"a:1": "A2"}}, map[string]string{"a:1": "A2"}, true, "[{a:1 A A2}]", false,
		},
		"back at what runs": {
			record.Service{Digests: map[string]string{"a:1": "A"}, Seen: map[string]string{"a:1": "A2"}}, map[string]string{"a:1": "A"}, false, "[]", false,
		},
		"one that failed": {
			record.Service{Digests: map[string]string{"a:1": "A", "b:1": "B"}, History: []record.Revision{{Hash: hash("A2", "B"), Failed: true}}},
			map[string]string{"a:1": "A2"}, false, "[{a:1 A A2}]", true,
		},
		"one that failed with another": {
			record.Service{Digests: map[string]string{"a:1": "A", "b:1": "B"}, History: []record.Revision{{Hash: hash("A2", "B2"), Failed: true}}},
			map[string]string{"a:1": "A2"}, false, "[{a:1 A A2}]", false,
		},
		"one that was superseded": {
			record.Service{Digests: map[string]string{"a:1": "A", "b:1": "B"}, History: []record.Revision{{Hash: hash("A2", "B")}}},
			map[string]string{"a:1": "A2"}, false, "[{a:1 A A2}]", false,
		},
	} {
		v := judgeTags(&s, &tc.rec, tc.found, tc.asked)
		if got := fmt.Sprint(v.moves); got != tc.want || v.failed != tc.failed {
			t.Errorf("%s: moves %s, failed before: %v; want %s and %v", name, got, v.failed, tc.want, tc.failed)
		}
	}
}
