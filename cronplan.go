package orchestrate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// PlannedCron is what would become of a cron job.
type PlannedCron struct {
	CronJob string `json:"cronJob"` // NAMESPACE/NAME
	// Outcome is [RolloutRemoved] when it would be gone, and else empty.
	Outcome   Outcome `json:"outcome,omitempty"`
	Suspended bool    `json:"suspended,omitempty"` // then there is no Next
	// Next are the first three times at which runs would be made, and Before those
	// as it is now: nil when there are none, it is suspended, or was not there.
	Next   []time.Time `json:"next,omitempty"`
	Before []time.Time `json:"before,omitempty"`
	// Starts is a time of the schedule that has passed, whose run would begin at
	// once; zero when there is none. Missed is how many would be given up.
	Starts time.Time `json:"starts,omitzero"`
	Missed int64     `json:"missed,omitempty"`
	// Active are the runs that would go on, NAMESPACE/NAME: an Apply changes none
	// that there are. What the next time does about them is Concurrency.
	Active      []string    `json:"active,omitempty"`
	Concurrency Concurrency `json:"concurrency,omitempty"`
	// Removes are the runs that would be removed at once: all, with the cron job;
	// those that make way for the run that Starts; and those that have ended and
	// are more than it keeps.
	Removes []string `json:"removes,omitempty"`
	// Run is the run that Starts, or else the next one as if its time were now, to
	// see whether there is room: a job in [Forecast.Services], NAMESPACE/NAME. Empty
	// when there is none to come.
	Run string `json:"run,omitempty"`
}

// nextRuns is how many times of a schedule a forecast shows.
const nextRuns = 3

// cronForesight is what comes of cron jobs that are written, with what the leader
// does about their runs at once.
type cronForesight struct {
	crons  []PlannedCron
	writes []store.Write
	runs   map[string]string // that are made or removed: whose, by name, both NAMESPACE/NAME
	begun  map[string]bool   // of these, those that would begin at once
}

// foresee looks ahead for the cron jobs among writes.
func (f *Fleet) foresee(ctx context.Context, writes []store.Write, now time.Time) (*cronForesight, error) {
	s := &cronForesight{runs: map[string]string{}, begun: map[string]bool{}}
	for _, w := range writes {
		parts := record.Split(w.Key, record.Crons, 2)
		if parts == nil {
			continue
		}
		if err := f.foreseeCron(ctx, s, w, parts[0], parts[1], now, false); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// foreseeCron looks ahead for one that is written; due says that its time is
// supposed to have come.
func (f *Fleet) foreseeCron(ctx context.Context, s *cronForesight, w store.Write, ns, name string, now time.Time, due bool) error {
	p := PlannedCron{CronJob: ns + "/" + name}
	old, found, err := store.Get(ctx, f.store, w.Key)
	if err != nil {
		return err
	}
	if found {
		was, rec, err := readCron(old)
		if err != nil {
			return err
		}
		p.Before = f.nextTimes(&was, rec.Since, now)
	}
	v, err := f.viewCron(ctx, ns, name)
	if err != nil {
		return err
	}
	full := func(run string) string { return ns + "/" + run }
	b := &batch{guarded: map[string]bool{}}
	remove := func(item store.Item) {
		f.deleteRun(ctx, b, item)
		run := strings.TrimPrefix(item.Key, record.Jobs)
		p.Removes, s.runs[run] = append(p.Removes, run), p.CronJob
	}
	if w.Delete {
		p.Outcome = RolloutRemoved
		for _, item := range v.runs {
			remove(item)
		}
		s.crons, s.writes = append(s.crons, p), append(s.writes, b.Writes...)
		return nil
	}
	c, rec, err := readCron(store.Item{Key: w.Key, Value: w.Value})
	if err != nil {
		return err
	}
	p.Suspended, p.Concurrency = c.Suspend, c.Concurrency
	p.Next = f.nextTimes(&c, rec.Since, now)
	decided, err := f.decideCron(ctx, v, &c, &rec, now)
	if err != nil {
		return err
	}
	step := decided.step
	if due && step.Start.IsZero() && (c.Concurrency != ForbidConcurrent || step.State.Active == nil) {
		step.Start = now
		if c.Concurrency == ReplaceConcurrent {
			step.Replaced, step.State.Active = step.State.Active, nil
		}
	}
	for _, item := range decided.strangers {
		remove(item)
	}
	for _, run := range slices.Concat(step.Expired, step.Replaced) {
		remove(decided.items[run])
	}
	for _, run := range step.State.Active {
		p.Active = append(p.Active, full(run))
	}
	at := step.Start
	p.Starts, p.Missed = step.Start.UTC(), step.Missed
	if at.IsZero() && len(p.Next) > 0 {
		at = p.Next[0]
	}
	if !at.IsZero() && !due || due && !step.Start.IsZero() {
		run, err := f.makeRun(WithActor(ctx, record.ActorPlanner), b, &c, &rec, record.CronRun{Name: name, Created: rec.Created, At: at.UTC()}, map[string]bool{})
		if err != nil {
			return err
		}
		p.Run = full(run)
		s.runs[p.Run], s.begun[p.Run] = p.CronJob, !step.Start.IsZero()
	}
	s.crons, s.writes = append(s.crons, p), append(s.writes, b.Writes...)
	return nil
}

// nextTimes are the first times at which c makes runs.
func (f *Fleet) nextTimes(c *CronJob, since, now time.Time) (times []time.Time) {
	next, _, err := f.schedule(c)
	if err != nil || c.Suspend {
		return nil
	}
	if since.After(now) {
		now = since
	}
	for len(times) < nextRuns {
		if now = next(now); now.IsZero() {
			break
		}
		times = append(times, now.UTC())
	}
	return times
}

// viewCron is what there is of a cron job besides its spec.
func (f *Fleet) viewCron(ctx context.Context, ns, name string) (*cronView, error) {
	v := &cronView{ns: ns, name: name}
	item, found, err := store.Get(ctx, f.store, record.Key(record.CronStates, ns, name))
	if err != nil {
		return nil, err
	}
	if found {
		v.state = item
	}
	jobs, err := f.store.List(ctx, record.Key(record.Jobs, ns, name+"-"))
	if err != nil {
		return nil, err
	}
	for _, item := range jobs.Items {
		if _, rec, err := readJob(item); err == nil && rec.Cron != nil && rec.Cron.Name == name {
			v.runs = append(v.runs, item)
		}
	}
	return v, nil
}

// names are the runs that are to be in the forecast.
func (s *cronForesight) names() []string { return keysOf(s.runs) }

// mark has the forecast say which jobs are runs of which cron jobs.
func (s *cronForesight) mark(f *Forecast) {
	f.Crons = s.crons
	for i := range f.Services {
		svc := &f.Services[i]
		if cron, ok := s.runs[svc.Service]; ok {
			svc.CronJob, svc.Asked = cron, s.begun[svc.Service]
		}
	}
}

func (p *PlannedCron) write(b *strings.Builder) {
	fmt.Fprintf(b, "%s: ", p.CronJob)
	times := func(times []time.Time) string {
		var all []string
		for _, t := range times {
			all = append(all, t.Format("2006-01-02 15:04:05"))
		}
		if all == nil {
			return "never"
		}
		return strings.Join(all, ", ") + " UTC"
	}
	var parts []string
	switch {
	case p.Outcome == RolloutRemoved:
		parts = append(parts, "no more runs")
	case p.Suspended:
		parts = append(parts, "suspended")
	default:
		parts = append(parts, "next "+times(p.Next))
	}
	if p.Before != nil && !slices.EqualFunc(p.Before, p.Next, time.Time.Equal) {
		parts = append(parts, "was "+times(p.Before))
	}
	if !p.Starts.IsZero() {
		parts = append(parts, "a run for "+p.Starts.Format("2006-01-02 15:04:05")+" begins at once")
	}
	if p.Missed > 0 {
		parts = append(parts, fmt.Sprintf("%d times are missed", p.Missed))
	}
	b.WriteString(strings.Join(parts, "; ") + "\n")
	if len(p.Active) > 0 {
		then := map[Concurrency]string{AllowConcurrent: "the next runs beside it", ForbidConcurrent: "the next waits for its end", ReplaceConcurrent: "the next removes it"}
		for _, run := range p.Active {
			fmt.Fprintf(b, "  %s goes on; %s\n", run, then[p.Concurrency])
		}
	}
	for _, run := range p.Removes {
		fmt.Fprintf(b, "  %s is removed\n", run)
	}
}

// CronRuns supposes that the time of cron jobs comes now, as their Concurrency
// has it: what is forbidden while a run goes on waits for its end. One that does
// not exist is a [*NameError].
func CronRuns(names ...string) What {
	return func(ctx context.Context, s *supposition) error {
		for _, name := range names {
			ns, base := splitName(name)
			key := record.Key(record.Crons, ns, base)
			item, found, err := s.item(ctx, key)
			if err != nil {
				return err
			}
			if !found {
				return &NameError{KindCronJob, name}
			}
			if err := s.fleet.foreseeCron(ctx, &s.crons, store.Put(key, item.Value), ns, base, s.now, true); err != nil {
				return err
			}
		}
		return nil
	}
}
