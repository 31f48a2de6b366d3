package control

import (
	"runtime"
	"strings"
	"sync"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// parsed is what a record says, of the kinds of which there are many: reading them
// is most of what it takes to load a fleet.
type parsed struct {
	task   *record.Task
	status *record.Status
	events []record.Brief
	err    error
}

// parse reads one record. It knows nothing of the state.
func parse(c store.Change) (p parsed) {
	if c.Deleted {
		return p
	}
	switch key := c.Item.Key; {
	case strings.HasPrefix(key, record.Tasks):
		p.task = new(record.Task)
		p.err = record.ReadTask(c.Item.Value, p.task)
	case strings.HasPrefix(key, record.Statuses):
		p.status = new(record.Status)
		p.err = record.ReadStatus(c.Item.Value, p.status)
	case strings.HasPrefix(key, record.Kept):
		p.events, p.err = record.ReadBriefs(c.Item.Value)
	}
	return p
}

// parseAhead is how many records are worth reading by several goroutines.
const parseAhead = 64

// parseAll reads many records, by as many goroutines as there are processors. What
// they say does not depend on one another; taking it in does.
func parseAll(changes []store.Change) []parsed {
	all := make([]parsed, len(changes))
	workers := min(runtime.GOMAXPROCS(0), len(changes)/parseAhead)
	if workers < 2 {
		for i := range changes {
			all[i] = parse(changes[i])
		}
		return all
	}
	var group sync.WaitGroup
	for w := range workers {
		first, end := w*len(changes)/workers, (w+1)*len(changes)/workers
		group.Go(func() {
			for i := first; i < end; i++ {
				all[i] = parse(changes[i])
			}
		})
	}
	group.Wait()
	return all
}

// puts are the changes that make items of nothing.
func puts(items []store.Item) []store.Change {
	changes := make([]store.Change, len(items))
	for i := range items {
		changes[i].Item = items[i]
	}
	return changes
}
