package orchestrate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/control"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/scheduler"
)

// Forecast is what would come of a change, or of something that happens. It is
// the best that can come of it: new tasks are taken to get ready, and old ones to
// stop, at once and without failing. What has a reason not to be ready stays so.
// Jobs whose specs would change are played to their end, each index of theirs
// completing as soon as it has a place; tasks of other jobs are taken to go on,
// but on a node that is drained.
type Forecast struct {
	// Services are those that something would happen to, by name, and those
	// whose specs would change.
	Services []PlannedService `json:"services,omitempty"`
	// Crons are the cron jobs whose specs would change, or whose time is supposed to
	// come. Their runs are jobs in Services.
	Crons []PlannedCron `json:"crons,omitempty"`
	// Nodes are the fleet's nodes by ID, with what they have left then.
	Nodes []PlannedNode `json:"nodes,omitempty"`
	// Total is the same of all nodes together that may get tasks.
	Total PlannedNode `json:"total"`
	// Took is the time it would take at least: monitor windows, and deadlines
	// that pass.
	Took time.Duration `json:"took"`
	// Approximate says that which task gets which room depends on the order in
	// which nodes come to what they are told: where several services move at a time,
	// where tasks wait for room that others give up, or where it turns out so. Then
	// the nodes of tasks that are [PlannedTask.Likely] may differ from what is said
	// here and, where they compete for the last room, what becomes of the services.
	// Without it, tasks go where it is said, as long as each stops within the monitor
	// window of what takes its place.
	Approximate bool `json:"approximate,omitempty"`
	// Open says that something would still go on then: what waits for a call,
	// such as a promotion, or for another, or comes again and again.
	Open bool `json:"open,omitempty"`
}

// PlannedService is what would become of a service, or of a job.
type PlannedService struct {
	Kind    string `json:"kind"`    // KindService, KindJob
	Service string `json:"service"` // NAMESPACE/NAME
	Asked   bool   `json:"asked"`   // its spec changes; else it would be affected, or is under way
	Kept    int    `json:"kept"`    // tasks that nothing happens to
	// CronJob is set in a run of one whose spec would change, NAMESPACE/NAME. Asked
	// says then that it begins at once; else it is removed or, the next one that
	// comes, played as if its time were now.
	CronJob  string `json:"cronJob,omitempty"`
	Revision int64  `json:"revision,omitempty"`
	// Outcome of its rollout, [RolloutWaiting] when that waits for a call or for
	// what is in Waiting, or of a job's run, whose number Revision then is; empty
	// when that would go on, or there is none.
	Outcome Outcome       `json:"outcome,omitempty"`
	Reason  Reason        `json:"reason,omitempty"`
	Message string        `json:"message,omitempty"`
	Tasks   []PlannedTask `json:"tasks,omitempty"`
	// WaitsFor is what it depends on that does not hold at first. Waiting is what of
	// that does not come to hold by what can be foreseen, such as a job that goes on
	// for who knows how long: when its tasks start is not known then, and Tasks are
	// what would happen once it holds; see [PlannedTask.Then].
	WaitsFor []Unmet `json:"waitsFor,omitempty"`
	Waiting  []Unmet `json:"waiting,omitempty"`
	// Erases are the volumes of its slots that would be deleted with their data,
	// which no inverse brings back: NODE/NAME.
	Erases []string `json:"erases,omitempty"`
	// Unplaced is the scheduler's decision about replicas that would have no
	// place, with what would help. Blocked says why there would be none in words,
	// also where that is not the scheduler's doing, such as a missing network.
	Unplaced *scheduler.Decision `json:"unplaced,omitempty"`
	Blocked  string              `json:"blocked,omitempty"`
}

func (s *PlannedService) unplaced() int {
	if s.Unplaced == nil {
		return 0
	}
	return s.Unplaced.Unplaced
}

// Err is nil when every replica would have a place, and otherwise an error that
// matches [scheduler.ErrUnplaced].
func (s *PlannedService) Err() error {
	if s.Unplaced == nil {
		return nil
	}
	return s.Unplaced.Err()
}

// TaskAction is what would happen to a replica.
type TaskAction string

// The actions.
const (
	TaskStarts   TaskAction = "start"   // it is new
	TaskStops    TaskAction = "stop"    // it goes
	TaskReplaced TaskAction = "replace" // another task takes its place on the same node
	TaskMoves    TaskAction = "move"    // another task takes its place on another node
	TaskResizes  TaskAction = "resize"  // it gets other resources, and is not restarted
)

// PlannedTask is what would happen to one replica, or to an index of a job.
type PlannedTask struct {
	Action TaskAction `json:"action"`
	Slot   int        `json:"slot"`
	Task   string     `json:"task,omitempty"` // ID of the one that goes, or is resized
	From   string     `json:"from,omitempty"` // its node
	To     string     `json:"to,omitempty"`   // the new task's node
	Cause  Cause      `json:"cause,omitzero"`
	// Decision is the scheduler's about the group of new tasks that this one
	// was placed with: nodes looked at and refused, and the parts of the score.
	Decision *scheduler.Decision `json:"decision,omitempty"`
	// After is when it would happen, at the earliest, from the beginning.
	After time.Duration `json:"after"`
	// Likely says that To may be another node; see Forecast.Approximate.
	Likely bool `json:"likely,omitempty"`
	// Then says that it happens only once what is waited for holds, which nobody
	// knows when: After counts as if that were at once.
	Then bool `json:"then,omitempty"`
}

func (t *PlannedTask) what() string {
	switch t.Action {
	case TaskStarts:
		return "start on " + t.To
	case TaskStops:
		return "stop on " + t.From
	case TaskReplaced:
		return "replace on " + t.To
	case TaskResizes:
		return "resize on " + t.To
	}
	return "move " + t.From + " → " + t.To
}

// PlannedNode is what a node has, and has left before and after.
type PlannedNode struct {
	Node   string              `json:"node,omitempty"`
	Usable bool                `json:"usable"` // it would get tasks
	Have   scheduler.Resources `json:"have"`
	Before scheduler.Resources `json:"before"` // free
	After  scheduler.Resources `json:"after"`  // free
	// TasksBefore and TasksAfter are the tasks on it.
	TasksBefore int `json:"tasksBefore"`
	TasksAfter  int `json:"tasksAfter"`
}

func readForecast(r *control.Rehearsal, now time.Time) Forecast {
	f := Forecast{Took: r.Took, Open: r.Open, Approximate: r.Approximate, Total: PlannedNode{Usable: true}}
	for i := range r.Services {
		f.Services = append(f.Services, readRehearsed(&r.Services[i], now))
	}
	for _, n := range r.Nodes {
		p := PlannedNode{
			Node: n.Node, Usable: n.Usable, Have: n.Have, Before: n.FreeBefore, After: n.FreeAt,
			TasksBefore: n.TasksBefore, TasksAfter: n.TasksAt,
		}
		f.Nodes = append(f.Nodes, p)
		f.Total.TasksBefore += p.TasksBefore
		f.Total.TasksAfter += p.TasksAfter
		if !p.Usable {
			continue
		}
		for _, sum := range []struct {
			to *scheduler.Resources
			of scheduler.Resources
		}{{&f.Total.Have, p.Have}, {&f.Total.Before, p.Before}, {&f.Total.After, p.After}} {
			sum.to.CPU += sum.of.CPU
			sum.to.Memory += sum.of.Memory
			sum.to.Disk += sum.of.Disk
		}
	}
	return f
}

func readRehearsed(r *control.Rehearsed, now time.Time) PlannedService {
	s := PlannedService{Kind: KindService, Service: r.Namespace + "/" + r.Name, Asked: r.Asked, Kept: r.Kept, Unplaced: r.Unplaced, Blocked: r.Blocked}
	if r.Job {
		s.Kind = KindJob
	}
	switch {
	case r.Run != nil:
		s.Revision, s.Reason, s.Message = r.Run.Number, Reason(r.Run.Reason), r.Run.Message
		switch r.Run.State {
		case record.RunCompleted:
			s.Outcome = RolloutCompleted
		case record.RunFailed:
			s.Outcome = RolloutFailed
		}
	case r.Rollout != nil:
		a := r.Rollout.Attempt
		s.Revision, s.Outcome, s.Reason, s.Message = a.Revision, readOutcome(a.State), Reason(a.Reason), a.Message
		if a.State == record.Progressing && r.Rollout.Phase == record.PhaseWaiting {
			s.Outcome, s.Message = RolloutWaiting, "it waits to be promoted or aborted"
		}
	default:
		s.Outcome = RolloutRemoved
	}
	s.Erases = r.Erased
	s.WaitsFor, s.Waiting = readUnmet(r.Awaited), readUnmet(r.Waiting)
	if s.Waiting != nil {
		s.Outcome, s.Reason, s.Message = RolloutWaiting, "", waitsFor(s.Waiting)
	}
	for _, step := range r.Steps {
		s.Tasks = append(s.Tasks, PlannedTask{
			Action: TaskAction(step.Kind), Slot: step.Slot, Task: step.Task, From: step.From, To: step.To,
			Cause: Cause(step.Cause), Decision: step.Decision, After: step.At.Sub(now), Likely: step.Likely, Then: step.Then,
		})
	}
	return s
}

// String is the plan as a table for people: what changes in the specs, what
// happens to which replica and why, what has no place, and what is left.
func (p *Plan) String() string {
	var b strings.Builder
	for _, l := range p.Left {
		fmt.Fprintf(&b, "= %s\n", l)
	}
	if len(p.Changes) == 0 {
		return b.String() + "nothing changes\n"
	}
	for _, c := range p.Changes {
		switch {
		case c.Before == nil && c.Implicit:
			fmt.Fprintf(&b, "+ %s %s, on first use\n", c.Kind, c.Name)
		case c.Before == nil:
			fmt.Fprintf(&b, "+ %s %s\n", c.Kind, c.Name)
		case c.After == nil:
			fmt.Fprintf(&b, "- %s %s\n", c.Kind, c.Name)
		default:
			fmt.Fprintf(&b, "~ %s %s", c.Kind, c.Name)
			switch {
			case c.From != c.To && c.Kind == KindJob:
				fmt.Fprintf(&b, ": begun anew, run %d → %d", c.From, c.To)
			case c.From != c.To:
				fmt.Fprintf(&b, ": revision %d → %d", c.From, c.To)
			case c.Kind == KindService:
				b.WriteString(": in place, the template stays")
			case c.Kind == KindJob:
				b.WriteString(": in place, its run goes on")
			}
			b.WriteByte('\n')
			for _, d := range c.Diff {
				fmt.Fprintf(&b, "    %s\n", d)
			}
		}
	}
	b.WriteString(p.Forecast.String())
	return b.String()
}

// maxTasksShown bounds the lines of one service in a printed forecast.
const maxTasksShown = 20

// String is the forecast as a table for people.
func (f *Forecast) String() string {
	var b strings.Builder
	for i := range f.Crons {
		f.Crons[i].write(&b)
	}
	for i := range f.Services {
		f.Services[i].write(&b)
	}
	if len(f.Nodes) > 0 {
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "node\ttasks\tcpu left\tmemory left")
		shown := slices.Clone(f.Nodes)
		if len(shown) > maxTasksShown {
			// Those that change say more than those that do not.
			slices.SortStableFunc(shown, func(a, b PlannedNode) int { return cmp.Compare(b.moved(), a.moved()) })
			shown = shown[:maxTasksShown]
		}
		for _, n := range shown {
			n.write(w, n.Node)
		}
		if more := len(f.Nodes) - len(shown); more > 0 {
			fmt.Fprintf(w, "… %d more\n", more)
		}
		f.Total.write(w, "in all")
		w.Flush() // into a strings.Builder, which does not fail
	}
	fmt.Fprintf(&b, "takes at least %v", f.Took.Round(time.Millisecond))
	if f.Open {
		b.WriteString(", and goes on then")
	}
	if f.Approximate {
		b.WriteString("; some tasks (~) may go elsewhere, as nodes come to it")
	}
	b.WriteByte('\n')
	return b.String()
}

func (s *PlannedService) write(b *strings.Builder) {
	fmt.Fprintf(b, "%s: ", s.Service)
	counts := map[TaskAction]int{}
	for _, t := range s.Tasks {
		counts[t.Action]++
	}
	var parts []string
	for _, a := range []TaskAction{TaskStarts, TaskResizes, TaskReplaced, TaskMoves, TaskStops} {
		if n := counts[a]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d to %s", n, a))
		}
	}
	if s.Kept > 0 || len(parts) == 0 {
		parts = append(parts, fmt.Sprintf("%d untouched", s.Kept))
	}
	if n := s.unplaced(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d WITHOUT A PLACE", n))
	}
	b.WriteString(strings.Join(parts, ", "))
	if s.Outcome != "" {
		fmt.Fprintf(b, "; %s", s.Outcome)
	}
	if s.Reason != "" {
		fmt.Fprintf(b, " (%s)", s.Reason)
	}
	switch {
	case s.CronJob != "" && !s.Asked && s.Outcome != RolloutRemoved:
		b.WriteString("; the next run of " + s.CronJob + ", if it came now")
	case s.CronJob != "":
		b.WriteString("; a run of " + s.CronJob)
	case !s.Asked:
		b.WriteString("; its spec does not change")
	}
	b.WriteByte('\n')
	for _, v := range s.Erases {
		fmt.Fprintf(b, "  the volume %s is DELETED with its data\n", v)
	}
	for _, u := range s.WaitsFor {
		when := "which comes to hold"
		if slices.ContainsFunc(s.Waiting, func(w Unmet) bool { return w.Dependency == u.Dependency }) {
			when = "for how long is not known"
		}
		fmt.Fprintf(b, "  waits: %s; %s\n", u, when)
	}
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	for i, t := range s.Tasks {
		if i == maxTasksShown {
			fmt.Fprintf(w, "  … %d more\n", len(s.Tasks)-i)
			break
		}
		why := t.Cause.Reason
		if t.Cause.Trigger != "" && !strings.HasPrefix(t.Cause.Trigger, "task/") {
			why += " (" + t.Cause.Trigger + ")"
		}
		if t.Decision != nil && t.Decision.Winner != nil {
			why += fmt.Sprintf(", best of %d", t.Decision.Evaluated)
		}
		what := t.what()
		if t.Likely {
			what += " ~"
		}
		if t.Then {
			what = "then " + what
		}
		fmt.Fprintf(w, "  %d\t%s\t%s\n", t.Slot, what, why)
	}
	w.Flush() // into a strings.Builder, which does not fail
	if s.Blocked != "" {
		fmt.Fprintf(b, "  %s\n", strings.ReplaceAll(s.Blocked, "\n", "\n  "))
	}
}

// moved is how much a node's load changes.
func (n *PlannedNode) moved() int64 {
	d := n.Before.CPU - n.After.CPU
	return max(d, -d)
}

func (n *PlannedNode) write(w *tabwriter.Writer, name string) {
	if !n.Usable {
		name += " (gets none)"
	}
	arrow := func(before, after string) string {
		if before == after {
			return after
		}
		return before + " → " + after
	}
	cores := func(milli int64) string { return fmt.Sprintf("%.3g", float64(milli)/float64(Core)) }
	memory := func(bytes int64) string { return fmt.Sprintf("%.3g GiB", float64(bytes)/float64(GiB)) }
	fmt.Fprintf(w, "%s\t%s\t%s of %s\t%s of %s\n", name, arrow(fmt.Sprint(n.TasksBefore), fmt.Sprint(n.TasksAfter)),
		arrow(cores(n.Before.CPU), cores(n.After.CPU)), cores(n.Have.CPU),
		arrow(memory(n.Before.Memory), memory(n.After.Memory)), memory(n.Have.Memory))
}
