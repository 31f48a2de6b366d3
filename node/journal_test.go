package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
	storemem "github.com/orchestrate-go/orchestrate/store/memory"
)

// flaky is a store whose commits fail: before or after they happen.
type flaky struct {
	store.Store
	before, after error
	commits       int
}

func (f *flaky) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if f.before != nil {
		return 0, f.before
	}
	f.commits++
	revision, err := f.Store.Commit(ctx, txn)
	if err == nil && f.after != nil {
		return 0, f.after
	}
	return revision, err
}

// diaryOf is what the records of a node's events say, in their order.
func diaryOf(t *testing.T, s store.Store) (lines []string, pages int) {
	t.Helper()
	snapshot, err := s.List(t.Context(), record.Kept+"node/n1/")
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range snapshot.Items {
		if item.Created != item.Revision {
			t.Errorf("%s was written again at revision %d: whoever watches is told twice", item.Key, item.Revision)
		}
		events, err := record.DecodeEvents(item.Value)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			lines = append(lines, e.Message)
		}
	}
	return lines, len(snapshot.Items)
}

func newJournal(s store.Store) *outbox {
	return newOutbox(s, slog.New(slog.DiscardHandler), "n1", func() store.LeaseID { return "" })
}

func say(message string) record.Event {
	return record.Event{Kind: record.TaskStarted, Namespace: "default", Service: "web", Message: message}
}

// An event is kept once, in the commit of what is queued with it, whatever becomes
// of commits and of agents.
func TestJournalTellsOnce(t *testing.T) {
	s := storemem.New(storemem.Options{})
	defer s.Close()
	f := &flaky{Store: s}
	o := newJournal(f)
	flush := func(wantErr bool) {
		t.Helper()
		if err := o.flush(t.Context()); (err != nil) != wantErr {
			t.Fatalf("flush: %v", err)
		}
	}
	o.tell(say("1"))
	o.put("/status/n1/a", "one", false)
	flush(false)
	if f.commits != 1 {
		t.Errorf("a status with its event took %d commits, want 1", f.commits)
	}
	f.before = errors.New("no way to the store")
	o.tell(say("2"))
	o.put("/status/n1/a", "two", false)
	flush(true)
	f.before, f.after = nil, errors.New("no answer")
	o.tell(say("3"))
	flush(true) // 2 is there, and nobody knows
	o.put("/status/n1/a", "three", false)
	f.after = nil
	flush(false)
	if got, _ := diaryOf(t, s); !slices.Equal(got, []string{"1", "2", "3"}) {
		t.Errorf("kept is %q, want each once", got)
	}
	item, _, err := store.Get(t.Context(), s, "/status/n1/a")
	if err != nil || string(item.Value) != `"three"` {
		t.Errorf("the status is %s, %v; want the newest", item.Value, err)
	}
	// The next agent goes on behind it.
	o = newJournal(f)
	o.tell(say("4"))
	if err := o.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := diaryOf(t, s); !slices.Equal(got, []string{"1", "2", "3", "4"}) {
		t.Errorf("after another agent kept is %q", got)
	}
}

// Where no leader deletes what is old, the node does, and says so; and it holds
// only so much for a store that takes nothing.
func TestJournalIsBounded(t *testing.T) {
	s := storemem.New(storemem.Options{})
	defer s.Close()
	f := &flaky{Store: s}
	o := newJournal(f)
	for i := range maxPages + 10 {
		o.tell(say(fmt.Sprint(i)))
		if err := o.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i == maxPages/2 { // another agent keeps to it
			o = newJournal(f)
		}
	}
	lines, pages := diaryOf(t, s)
	if pages != maxPages || lines[0] != "10" || lines[len(lines)-1] != fmt.Sprint(maxPages+9) {
		t.Errorf("%d pages are kept, from %s to %s; want the newest %d", pages, lines[0], lines[len(lines)-1], maxPages)
	}
	item, _, err := store.Get(t.Context(), s, record.NodeEvents("n1", maxPages+10))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := store.Get(t.Context(), s, record.NodeEvents("n1", 11))
	if want := fmt.Sprintf(`"forgotten":%d}`, first.Revision-1); string(item.Value[len(item.Value)-len(want):]) != want {
		t.Errorf("the newest page is %s; want that it ends with %s", item.Value, want)
	}

	f.before = errors.New("no way to the store")
	for i := range maxQueued + 100 {
		o.tell(say(fmt.Sprint("late ", i)))
	}
	if err := o.flush(t.Context()); err == nil {
		t.Fatal("the store took it")
	}
	f.before = nil
	if err := o.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	lines, _ = diaryOf(t, s)
	lines = lines[slices.IndexFunc(lines, func(l string) bool { return l != "" && l[0] != 'l' && l[len(l)-1] == 'e' }):]
	if len(lines) != 1+maxQueued || lines[0] != "100 events of this node were not kept: the store did not take them in time" ||
		lines[1] != "late 100" || lines[maxQueued] != fmt.Sprint("late ", maxQueued+99) {
		t.Errorf("after a time without a store %d are told, %q …; want the newest %d, and how many are missing", len(lines), lines[:2], maxQueued)
	}
}
