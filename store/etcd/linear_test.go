//go:build unix

package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/internal/etcdtest"
)

// step is one call of a client. Every transaction writes the call's own name to
// the client's mark, so that each one that happened can be found in the history.
type step struct {
	mark string // key of the client's mark
	name string // of the call; empty of a read
	key  string // of a Get; the prefix of a List
	list bool
	txn  store.Txn
}

// result is what a call returned.
type result struct {
	revision int64                // of a commit or a snapshot
	items    []store.Item         // of a read
	conflict *store.ConflictError // nil: it committed
}

// space is what a store holds, as far as the model knows it: a value that is
// never changed once it is made.
type space struct {
	revision int64
	items    map[string]store.Item
}

// model is the store as one thing that does one call at a time. Revisions are
// part of it: since nobody else writes, each transaction takes the next.
var model = porcupine.Model{
	Init: func() any { return space{revision: 1} }, // of an empty etcd
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(space), input.(step), output.(result)
		if in.name == "" {
			return s.shows(in, out), s
		}
		for _, c := range in.txn.If {
			if got := s.items[c.Key].Revision; got != c.Revision {
				return out.conflict != nil && *out.conflict == store.ConflictError{Key: c.Key, Want: c.Revision, Got: got}, s
			}
		}
		if out.conflict != nil || out.revision != s.revision+1 {
			return false, s
		}
		return true, s.after(in.txn)
	},
	Equal: func(a, b any) bool { return a.(space).revision == b.(space).revision },
}

// shows reports whether a read of s returns out.
func (s space) shows(in step, out result) bool {
	var want []store.Item
	for _, key := range slices.Sorted(maps.Keys(s.items)) {
		if key == in.key || in.list && strings.HasPrefix(key, in.key) {
			want = append(want, s.items[key])
		}
	}
	same := func(a, b store.Item) bool {
		return a.Key == b.Key && string(a.Value) == string(b.Value) && a.Revision == b.Revision && a.Created == b.Created
	}
	return slices.EqualFunc(want, out.items, same) && (!in.list || out.revision == s.revision)
}

// after is s with one more transaction.
func (s space) after(txn store.Txn) space {
	next := space{revision: s.revision + 1, items: maps.Clone(s.items)}
	if next.items == nil {
		next.items = map[string]store.Item{}
	}
	for _, w := range txn.Writes {
		if w.Delete {
			delete(next.items, w.Key)
			continue
		}
		created := next.revision
		if old, found := next.items[w.Key]; found {
			created = old.Created
		}
		next.items[w.Key] = store.Item{Key: w.Key, Value: w.Value, Revision: next.revision, Created: created}
	}
	return next
}

// client makes random calls and writes down what came of them.
type client struct {
	store  store.Store
	id     int
	random *rand.Rand
	clock  func() int64
	calls  []porcupine.Operation
	lost   []porcupine.Operation // writes of which nobody knows whether they happened
	known  map[string]int64      // revisions that this client has seen
	count  *atomic.Int64         // answered calls of all clients
}

var keys = []string{"/k/a", "/k/b", "/k/c", "/k/d"}

func (c *client) run(ctx context.Context) error {
	for n := 0; ctx.Err() == nil; n++ {
		call := porcupine.Operation{ClientId: c.id, Input: c.next(n), Call: c.clock()}
		out, err := c.do(ctx, call.Input.(step))
		call.Return, call.Output = c.clock(), out
		switch {
		case err == nil:
			c.calls = append(c.calls, call)
			c.count.Add(1)
		case !errors.Is(err, etcd.ErrUnavailable) && ctx.Err() == nil:
			return fmt.Errorf("client %d, %+v: %w", c.id, call.Input, err)
		case call.Input.(step).name != "":
			c.lost = append(c.lost, call)
		}
		pause := time.NewTimer(time.Duration(c.random.IntN(20)) * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
	return nil
}

// next is a call: half of them read; of the writes most have a condition that
// held when this client last looked.
func (c *client) next(n int) step {
	pick := func() string { return keys[c.random.IntN(len(keys))] }
	s := step{mark: fmt.Sprintf("/m/%d", c.id), name: fmt.Sprintf("%d-%d", c.id, n)}
	switch c.random.IntN(8) {
	case 0, 1, 2:
		return step{key: pick()}
	case 3:
		return step{key: "/k/", list: true}
	case 4: // whatever is there
	case 5, 6:
		key := pick()
		s.txn.If = []store.Condition{{Key: key, Revision: c.known[key]}}
	case 7:
		for _, i := range c.random.Perm(len(keys))[:2] {
			s.txn.If = append(s.txn.If, store.Condition{Key: keys[i], Revision: c.known[keys[i]]})
		}
	}
	s.txn.Writes = []store.Write{store.Put(s.mark, []byte(s.name))}
	for _, i := range c.random.Perm(len(keys))[:1+c.random.IntN(2)] {
		w := store.Put(keys[i], []byte(s.name))
		if c.random.IntN(5) == 0 {
			w = store.Delete(keys[i])
		}
		s.txn.Writes = append(s.txn.Writes, w)
	}
	return s
}

func (c *client) do(ctx context.Context, s step) (out result, err error) {
	switch {
	case s.list:
		var snapshot store.Snapshot
		snapshot, err = c.store.List(ctx, s.key)
		out = result{revision: snapshot.Revision, items: snapshot.Items}
	case s.name == "":
		var item store.Item
		var found bool
		if item, found, err = store.Get(ctx, c.store, s.key); found {
			out.items = []store.Item{item}
		} else if err == nil {
			c.known[s.key] = 0
		}
	default:
		out.revision, err = c.store.Commit(ctx, s.txn)
		if errors.As(err, &out.conflict) {
			c.known[out.conflict.Key] = out.conflict.Got
			return out, nil
		}
	}
	for _, item := range out.items {
		c.known[item.Key] = item.Revision
	}
	return out, err
}

// trouble makes faults, one after the other and some at once, until it is enough
// or ctx ends; then everything runs and is healed. It returns what it did.
func trouble(ctx context.Context, enough func() bool, c *etcdtest.Cluster, random *rand.Rand) []string {
	var did []string
	stopped := map[int]bool{}
	pause := func() {
		timer := time.NewTimer(time.Duration(300+random.IntN(1500)) * time.Millisecond)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	// At first one that is asked by clients and hears nothing of the others, for
	// long enough that these go on without it: who answers from what it knows is
	// found out here.
	first := random.IntN(c.Len())
	c.CutPeers(first)
	did = append(did, fmt.Sprint("cut peers of ", first))
	for range 3 {
		pause()
	}
	c.Heal()
	for ctx.Err() == nil && !enough() {
		i, j := random.IntN(c.Len()), random.IntN(c.Len())
		switch random.IntN(8) {
		case 0, 1:
			if c.Runs(i) && !stopped[i] {
				c.Kill(i)
				did = append(did, fmt.Sprint("kill ", i))
			}
		case 2:
			if c.Runs(i) && !stopped[i] {
				c.Stop(i)
				stopped[i] = true
				did = append(did, fmt.Sprint("stop ", i))
			}
		case 3:
			c.CutPeers(i)
			did = append(did, fmt.Sprint("cut peers of ", i))
		case 4:
			c.CutPair(i, j)
			did = append(did, fmt.Sprint("cut ", i, "-", j))
		case 5:
			c.CutClients(i)
			did = append(did, fmt.Sprint("cut clients of ", i))
		default:
		}
		pause()
		// Then some of it is over.
		if random.IntN(2) == 0 {
			c.Heal()
			did = append(did, "heal")
		}
		for i := range c.Len() {
			switch {
			case stopped[i] && random.IntN(2) == 0:
				c.Continue(i)
				delete(stopped, i)
				did = append(did, fmt.Sprint("continue ", i))
			case !c.Runs(i) && random.IntN(2) == 0 && running(c, stopped) > 0:
				c.Heal() // or it would not get ready
				for j := range stopped {
					c.Continue(j)
					delete(stopped, j)
				}
				startMissing(c)
				did = append(did, "start all")
			}
		}
	}
	c.Heal()
	for i := range stopped {
		c.Continue(i)
	}
	startMissing(c)
	return append(did, "end")
}

func running(c *etcdtest.Cluster, stopped map[int]bool) int {
	n := 0
	for i := range c.Len() {
		if c.Runs(i) && !stopped[i] {
			n++
		}
	}
	return n
}

// startMissing starts all at once, since one may need another to get ready.
func startMissing(c *etcdtest.Cluster) {
	var all sync.WaitGroup
	for i := range c.Len() {
		if !c.Runs(i) {
			all.Go(func() { c.Start(i) })
		}
	}
	all.Wait()
}

// history has random clients call stores over a cluster in trouble, and returns
// what they say happened, with what came to be known of lost calls.
func history(t *testing.T, seed uint64, length time.Duration, wrong func(*etcd.Store) store.Store) []porcupine.Operation {
	c := etcdtest.New(t, 3)
	started := time.Now()
	clock := func() int64 { return time.Since(started).Nanoseconds() }
	ctx, cancel := context.WithTimeout(t.Context(), 40*length)
	defer cancel()
	count := &atomic.Int64{}
	enough := func() bool { return time.Since(started) > length && count.Load() > 500 }

	clients := make([]*client, 5)
	var calling sync.WaitGroup
	for i := range clients {
		s := dial(t, c.Endpoints())
		clients[i] = &client{
			store: wrong(s), id: i, clock: clock, known: map[string]int64{}, count: count,
			random: rand.New(rand.NewPCG(seed, uint64(i))),
		}
		calling.Go(func() {
			if err := clients[i].run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	// One that watches through all of it, from the beginning.
	end := &atomic.Int64{}
	watcher := dial(t, c.Endpoints())
	watched := make(chan []store.Batch, 1)
	go func() { watched <- watchUntil(t, watcher, end) }()

	did := trouble(ctx, enough, c, rand.New(rand.NewPCG(seed, 99)))
	cancel()
	calling.Wait()
	t.Logf("faults: %s", strings.Join(did, ", "))

	last := commitOnce(t, watcher, "/m/end")
	end.Store(last)
	seen := <-watched
	calm := &atomic.Int64{}
	calm.Store(last)
	if again := watchUntil(t, dial(t, c.Endpoints()), calm); !slices.EqualFunc(seen, again, sameBatch) {
		t.Errorf("the watch that saw the faults got %d batches, and one after them %d: want the same", len(seen), len(again))
	}
	happened := map[string]int64{}
	for _, batch := range seen {
		for _, change := range batch.Changes {
			if strings.HasPrefix(change.Item.Key, "/m/") {
				if at, twice := happened[string(change.Item.Value)]; twice {
					t.Errorf("%s happened at %d and again at %d", change.Item.Value, at, batch.Revision)
				}
				happened[string(change.Item.Value)] = batch.Revision
			}
		}
	}
	var calls []porcupine.Operation
	lost := 0
	for _, one := range clients {
		calls = append(calls, one.calls...)
		for _, call := range one.lost {
			// Lost calls that did not happen until now never will: the members
			// that could have held them were healed and asked.
			if revision, found := happened[call.Input.(step).name]; found {
				call.Output, call.Return = result{revision: revision}, clock()
				calls = append(calls, call)
				lost++
			}
		}
	}
	t.Logf("%d calls answered, %d lost of which %d happened, up to revision %d", len(calls)-lost, lostCalls(clients), lost, last)
	if len(calls) < 500 {
		t.Errorf("only %d calls: this shows little", len(calls))
	}
	calls = append(calls, porcupine.Operation{
		ClientId: len(clients), Call: clock(), Return: clock() + 1,
		Input:  step{name: "end", txn: store.Txn{Writes: []store.Write{store.Put("/m/end", []byte("end"))}}},
		Output: result{revision: last},
	})
	return calls
}

func lostCalls(clients []*client) (n int) {
	for _, c := range clients {
		n += len(c.lost)
	}
	return n
}

// dial opens a store that is closed with the test.
func dial(t testing.TB, endpoints []string) *etcd.Store {
	t.Helper()
	s, err := etcd.Open(etcd.Options{Endpoints: endpoints, Prefix: "/", Timeout: 3 * time.Second, Logger: etcdtest.Logger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// commitOnce writes key once the cluster has recovered.
func commitOnce(t *testing.T, s *etcd.Store, key string) int64 {
	t.Helper()
	txn := store.Txn{If: []store.Condition{store.Absent(key)}, Writes: []store.Write{store.Put(key, []byte("end"))}}
	for {
		revision, err := s.Commit(t.Context(), txn)
		var conflict *store.ConflictError
		switch {
		case err == nil:
			return revision
		case errors.As(err, &conflict):
			return conflict.Got // an earlier try did it
		case !errors.Is(err, etcd.ErrUnavailable):
			t.Fatal(err)
		}
	}
}

// watchUntil returns all batches from the beginning to the revision that end
// gets.
func watchUntil(t *testing.T, s *etcd.Store, end *atomic.Int64) []store.Batch {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	batches, err := s.Watch(ctx, "/", 0)
	if err != nil {
		t.Errorf("Watch: %v", err)
		return nil
	}
	var seen []store.Batch
	for batch := range batches {
		if batch.Err != nil {
			t.Errorf("watch ended with %v", batch.Err)
			return seen
		}
		seen = append(seen, batch)
		// The last is written before end is told.
		for _, change := range batch.Changes {
			if change.Item.Key == "/m/end" {
				return seen
			}
		}
	}
	t.Errorf("watch ended before %d", end.Load())
	return seen
}

func sameBatch(a, b store.Batch) bool {
	return a.Revision == b.Revision && slices.EqualFunc(a.Changes, b.Changes, func(a, b store.Change) bool {
		return a.Deleted == b.Deleted && a.Item.Key == b.Item.Key && string(a.Item.Value) == string(b.Item.Value)
	})
}

// TestLinearizable checks that random calls over members that are killed,
// stopped and cut off look as if there were one store that did one at a time,
// in an order that agrees with the clock, and that nothing which was
// acknowledged is lost. (M. Herlihy and J. Wing, "Linearizability", 1990.)
func TestLinearizable(t *testing.T) {
	rounds, length := 1, 12*time.Second
	switch {
	case os.Getenv("ORCHESTRATE_LONG") != "":
		rounds, length = 12, time.Minute
	case testing.Short():
		length = 6 * time.Second
	}
	for range rounds {
		seed := rand.Uint64()
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			calls := history(t, seed, length, func(s *etcd.Store) store.Store { return s })
			if verdict := porcupine.CheckOperationsTimeout(model, calls, 2*time.Minute); verdict != porcupine.Ok {
				t.Errorf("%d calls are %s, want them linearizable", len(calls), verdict)
			}
		})
	}
}
