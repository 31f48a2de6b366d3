package orchestrate_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
	runtimememory "github.com/orchestrate-go/orchestrate/runtime/memory"
)

// history is the revisions of web in a word each: number, image, "!" if it
// completed, "*" if it is the current one.
func history(t *testing.T, f *orchestrate.Fleet) string {
	t.Helper()
	revisions, err := f.History(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, r := range revisions {
		w := fmt.Sprintf("%d:%s", r.Number, strings.TrimPrefix(r.Template.Containers[0].Image, "img:"))
		if r.Completed {
			w += "!"
		}
		if r.Current {
			w += "*"
		}
		if r.Hash != r.Template.Hash() || r.Created.IsZero() {
			t.Errorf("revision %d has hash %s, want %s, and was created at %v", r.Number, r.Hash, r.Template.Hash(), r.Created)
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}

func image(name string) orchestrate.Service {
	s := service("web", 0)
	s.Containers[0].Image = "img:" + name
	return s
}

func TestHistoryAndRollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		if _, err := f.History(t.Context(), "web"); !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("the history of nothing: %v, want not found", err)
		}
		wants := func(want string) {
			t.Helper()
			if got := history(t, f); got != want {
				t.Errorf("history %q, want %q", got, want)
			}
		}
		rollsBack := func(to int64, image string) {
			t.Helper()
			if err := f.Rollback(t.Context(), "web", to); err != nil {
				t.Fatal(err)
			}
			mustEnd(t, f, "web", orchestrate.RolloutCompleted)
			st, err := f.Get(t.Context(), "web")
			if err != nil || st.Containers[0].Image != "img:"+image {
				t.Errorf("after the rollback to %d the image is %s, %v; want img:%s", to, st.Containers[0].Image, err, image)
			}
		}
		mustApply(t, f, image("a"))
		wants("1:a*")
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		wants("1:a!*")
		var missing *orchestrate.RevisionError
		if err := f.Rollback(t.Context(), "web", 0); !errors.As(err, &missing) || !errors.Is(err, orchestrate.ErrNotFound) {
			t.Errorf("rolling back the first revision: %v, want a RevisionError", err)
		}
		mustApply(t, f, image("b"))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		rt.SetImage("img:c", runtimememory.Image{PullErr: runtime.ErrImageNotFound})
		mustApply(t, f, image("c"))
		mustEnd(t, f, "web", orchestrate.RolloutFailed)
		wants("1:a! 2:b! 3:c*")

		// The last that completed. The replicas are not the template's.
		if err := f.Scale(t.Context(), "web", 2); err != nil {
			t.Fatal(err)
		}
		rollsBack(0, "b")
		wants("1:a! 2:b! 3:c 4:b!*")
		if st, err := f.Get(t.Context(), "web"); err != nil || st.Replicas != 2 {
			t.Errorf("after the rollback there are %d replicas, %v; want 2", st.Replicas, err)
		}
		rollsBack(0, "a") // 4 is 2 again
		rollsBack(4, "b")
		wants("1:a! 2:b! 3:c 4:b! 5:a! 6:b!*")
		err := f.Rollback(t.Context(), "web", 9)
		if !errors.As(err, &missing) || missing.Service != "default/web" || missing.Revision != 9 || fmt.Sprint(missing.Have) != "[1 2 3 4 5 6]" {
			t.Errorf("rolling back to revision 9: %v, want that there are 1 to 6", err)
		}
		revisions, err := f.History(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		if d := revisions[0].Diff(revisions[1]); len(d) != 1 || d[0].String() != `containers["main"].image: "img:a" → "img:b"` {
			t.Errorf("diff %v, want the image", d)
		}

		// A service of the same name is another one.
		if err := f.Remove(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		mustApply(t, f, image("d"))
		wants("1:d*")
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		wants("1:d!*")
	})
}

// A rollback to what still runs restarts nothing.
func TestRollbackKeepsWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, _ := open(t)
		mustApply(t, f, image("a"))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		before, err := f.Tasks(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		rt.SetImage("img:b", runtimememory.Image{PullTime: time.Hour})
		mustApply(t, f, image("b"))
		time.Sleep(time.Minute)
		if err := f.Rollback(t.Context(), "web", 0); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		after, err := f.Tasks(t.Context(), "web")
		if err != nil || len(after) != 1 || after[0].ID != before[0].ID {
			t.Errorf("tasks %v, %v; want %v alone", after, err, before)
		}
	})
}

// The history is bounded, by number and by size, and the last revision that
// completed outlives any number that have not.
func TestHistoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, rt, s := open(t)
		mustApply(t, f, image("good"))
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		var want []string
		for i := range 15 {
			name := fmt.Sprint("v", i)
			rt.SetImage("img:"+name, runtimememory.Image{PullTime: time.Hour})
			mustApply(t, f, image(name))
			want = append(want, fmt.Sprintf("%d:%s", i+2, name))
		}
		if got, want := history(t, f), "1:good! "+strings.Join(want[5:], " ")+"*"; got != want {
			t.Errorf("history %q, want %q", got, want)
		}

		large := image("good")
		large.Containers[0].Env = map[string]string{}
		for i := range 30 {
			large.Containers[0].Env[fmt.Sprint("V", i)] = strings.Repeat("x", 4000)
		}
		mustApply(t, f, large)
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
		for i := range 5 {
			large.Containers[0].Env["N"] = fmt.Sprint(i)
			mustApply(t, f, large)
		}
		if got, want := history(t, f), "17:good! 22:good*"; got != want {
			t.Errorf("history %q, want %q: of large ones only the last that completed", got, want)
		}
		snapshot, err := s.List(t.Context(), "/services/")
		if err != nil || len(snapshot.Items) != 1 || len(snapshot.Items[0].Value) > 300_000 {
			t.Errorf("%d records, %v; want one of less than 300,000 bytes", len(snapshot.Items), err)
		}
		if err := f.Rollback(t.Context(), "web", 0); err != nil {
			t.Fatal(err)
		}
		mustEnd(t, f, "web", orchestrate.RolloutCompleted)
	})
}
