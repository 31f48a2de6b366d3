package bolt_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/bolt"
)

// childEnv makes the test binary a writer to the store at its value.
const childEnv = "ORCHESTRATE_STORE_BOLT_TEST_CHILD"

const childWriters = 4

// child commits until it is killed, and tells each acknowledged commit on its
// standard output. Each writes two keys, to show that no half of one survives.
func child(path string) {
	ctx := context.Background()
	s, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("open")
	lease, err := s.Lease(ctx, time.Hour)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	start, err := s.List(ctx, "")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for w := range childWriters {
		go func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("%d-%d-%d", start.Revision, w, i)
				value := []byte(strings.Repeat(name+" ", 1+i%50))
				revision, err := s.Commit(ctx, store.Txn{
					If: []store.Condition{store.Absent("/a/" + name)},
					Writes: []store.Write{
						store.Put("/a/"+name, value),
						store.Put("/b/"+name, value),
						store.PutLeased(fmt.Sprintf("/leased/%d", w), value, lease.ID()),
						store.Put(fmt.Sprintf("/same/%d", w), value),
					},
				})
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				// One write, so that a line is there whole or not at all.
				_, _ = os.Stdout.WriteString(fmt.Sprintf("%d %s\n", revision, name))
			}
		}()
	}
	select {}
}

// startChild runs this test binary as a child on path.
func startChild(t *testing.T, path string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

// TestKill kills a process while it commits, again and again in one file, and
// wants every acknowledged commit, whole.
func TestKill(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "state.db")
	acknowledged := map[string]int64{}
	for round := range rounds {
		cmd, lines := startChild(t, path)
		if !lines.Scan() || lines.Text() != "open" {
			t.Fatalf("round %d: child says %q, want it to open the store", round, lines.Text())
		}
		if round == 0 { // it takes its time
			if _, err := bolt.Open(path, bolt.Options{}); !errors.Is(err, bolt.ErrLocked) {
				t.Errorf("Open while another process has it: %v, want ErrLocked", err)
			}
		}
		for n := rand.IntN(300); n > 0 && lines.Scan(); n-- {
			acknowledge(t, acknowledged, lines.Text())
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // told before it died
			acknowledge(t, acknowledged, lines.Text())
		}
		_ = cmd.Wait() // its error is that it was killed

		s, err := bolt.Open(path, bolt.Options{})
		if err != nil {
			t.Fatalf("round %d: Open after a kill: %v", round, err)
		}
		expectSurvivors(ctx, t, s, acknowledged, (round+1)*childWriters)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("crashes: %d; %d acknowledged commits, none lost", rounds, len(acknowledged))
}

func acknowledge(t *testing.T, acknowledged map[string]int64, line string) {
	t.Helper()
	var revision int64
	var name string
	if _, err := fmt.Sscan(line, &revision, &name); err != nil {
		t.Fatalf("child says %q: %v", line, err)
	}
	acknowledged[name] = revision
}

// expectSurvivors checks that s has all acknowledged commits, and whole those
// that were on their way, of which there are at most so many.
func expectSurvivors(ctx context.Context, t *testing.T, s *bolt.Store, acknowledged map[string]int64, onTheirWay int) {
	t.Helper()
	snapshot, err := s.List(ctx, "/")
	if err != nil {
		t.Fatal(err)
	}
	items := map[string]store.Item{}
	commits := 0
	for _, item := range snapshot.Items {
		items[item.Key] = item
		if strings.HasPrefix(item.Key, "/leased/") {
			t.Errorf("%s survived its process", item.Key)
		}
		if strings.HasPrefix(item.Key, "/a/") {
			commits++
		}
	}
	for name, revision := range acknowledged {
		if a := items["/a/"+name]; a.Revision != revision || !strings.HasPrefix(string(a.Value), name+" ") {
			t.Errorf("acknowledged commit %s at %d: found at %d with %.30q", name, revision, a.Revision, a.Value)
		}
		if revision > snapshot.Revision {
			t.Errorf("store is at revision %d after %d was acknowledged", snapshot.Revision, revision)
		}
	}
	for key, item := range items {
		if name, ok := strings.CutPrefix(key, "/a/"); ok {
			if other := items["/b/"+name]; other.Revision != item.Revision || string(other.Value) != string(item.Value) {
				t.Errorf("half of commit %s survived: /a at %d, /b at %d", name, item.Revision, other.Revision)
			}
		}
	}
	if most := len(acknowledged) + onTheirWay; commits > most {
		t.Errorf("%d commits survived, want at most %d: %d acknowledged and those on their way", commits, most, len(acknowledged))
	}
}

// TestKillCreation kills a process while it makes the file. What is left must
// open, and the left-overs must go.
func TestKillCreation(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	interrupted := 0
	for range rounds {
		dir := t.TempDir()
		path := filepath.Join(dir, "state.db")
		cmd, lines := startChild(t, path)
		// Not synchronisation but the fault itself: any moment will do. The
		// directory's first entry tells when it becomes interesting.
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
			if entries, _ := os.ReadDir(dir); len(entries) > 0 {
				break
			}
		}
		for moment := time.Now().Add(time.Duration(rand.IntN(8000)) * time.Microsecond); time.Now().Before(moment); {
			continue
		}
		_ = cmd.Process.Kill()
		if !lines.Scan() {
			interrupted++
		}
		for lines.Scan() {
			continue
		}
		_ = cmd.Wait()
		s, err := bolt.Open(path, bolt.Options{})
		if err != nil {
			t.Fatalf("Open after a kill during creation: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("folder has %v (%v), want the file alone", entries, err)
		}
	}
	t.Logf("crashes: %d of %d, interrupted before the store was open", interrupted, rounds)
}
