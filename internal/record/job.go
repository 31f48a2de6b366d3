package record

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// The kinds of event that change a job's spec.
const (
	JobApplied EventKind = "job-applied" // its spec was written
	JobGone    EventKind = "job-removed" // its spec was deleted; its tasks stop
)

// Prefixes of jobs. Both end in a slash.
const (
	Jobs = "/jobs/" // NS/NAME  application; of a cron job's run, leader  Job
	Runs = "/runs/" // NS/NAME  leader       Run
)

// Job is a job's spec as the application wrote it.
type Job struct {
	// Spec is the JSON of an orchestrate.Job with its defaults filled in.
	Spec json.RawMessage `json:"spec"`
	// Run counts, from 1, how often the job is begun: by its first Apply, by one
	// that changes what its tasks do, and by one that tries a failed job again.
	Run int64 `json:"run"`
	// Hash identifies the template with its digests.
	Hash    string    `json:"hash"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	Actor   string    `json:"actor,omitempty"`
	// Cron is set on a run of a cron job, whose record is the leader's.
	Cron *CronRun `json:"cron,omitempty"`

	// Digests are what the images of the run mean, by reference, and Unresolved
	// those of which that is not known yet, with why, "" before it was asked:
	// nothing is started until it is. One that is in both keeps its digest if it
	// cannot be asked for.
	Digests    map[string]string `json:"digests,omitempty"`
	Unresolved map[string]string `json:"unresolved,omitempty"`
}

// JobTask is what a task of a job knows of it besides its index, which is its
// Slot.
type JobTask struct {
	// Attempt counts the tries of the index that were judged as failed before.
	Attempt int `json:"attempt,omitempty"`
}

// RunState is where a run of a job is.
type RunState string

// The run states. The last two are final.
const (
	RunActive    RunState = "active"
	RunSuspended RunState = "suspended"
	RunCompleted RunState = "completed"
	RunFailed    RunState = "failed"
)

// Final reports whether the run has ended.
func (s RunState) Final() bool { return s == RunCompleted || s == RunFailed }

// Run is how far the leader has brought a job. It lasts as long as the job has
// a spec or tasks. Its size is bounded whatever the number of completions.
type Run struct {
	Number  int64     `json:"run"`  // the job's Run that this is about
	Spec    int64     `json:"spec"` // store revision of the job's record
	Created time.Time `json:"created"`

	State   RunState  `json:"state"`
	Reason  string    `json:"reason,omitempty"` // of a failure: one of the Why constants
	Message string    `json:"message,omitempty"`
	Failure *Failure  `json:"failure,omitempty"` // the last of its tasks that counted
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`

	// Spent is how long it was active before Resumed; not since, while it is
	// suspended.
	Spent   time.Duration `json:"spent,omitempty"`
	Resumed time.Time     `json:"resumed,omitzero"`

	Indexes int      `json:"indexes"`         // how many there are
	Done    IndexSet `json:"done,omitzero"`   // that completed
	Failed  IndexSet `json:"failed,omitzero"` // that are given up
	// Tries holds the indexes that failed and are to be tried again.
	Tries map[int]Try `json:"tries,omitempty"`
	// Counted are those tasks that were judged as failed and are still there:
	// none is judged twice.
	Counted []string `json:"counted,omitempty"`

	Active   int `json:"active"`             // tasks there are to be
	Failures int `json:"failures,omitempty"` // of tasks, that counted
	Ignored  int `json:"ignored,omitempty"`  // of tasks, that did not
	// Unplaced is set while tasks have no place, in the words of the scheduler.
	Unplaced string `json:"unplaced,omitempty"`

	// Waiting is what the run depends on that does not hold. Cleared says that it
	// all did once.
	Waiting []Unmet `json:"waiting,omitempty"`
	Cleared bool    `json:"cleared,omitempty"`
}

// Try is what is remembered of an index that failed.
type Try struct {
	Failures int       `json:"failures"`
	Last     time.Time `json:"last"`
	Node     string    `json:"node"` // where it failed last
}

// Why a run failed; the WhyNetwork and WhySpec of a rollout are others.
const (
	WhyJobDeadline = "deadline"     // it was not done in time
	WhyIndexes     = "index-failed" // more indexes were given up than may
	WhyExitCode    = "exit-code"    // a task's exit code ends the job, by its own rule
)

// Reasons for which tasks of jobs are stopped.
const (
	ReasonFinished  = "finished"  // the job has ended without this task
	ReasonSuspended = "suspended" // the job is suspended
)

// IndexSet is a set of small numbers. Its JSON is the shorter of a list of
// ranges, such as "0-4,7", and a bitmap, so that it is small for any set.
// The zero value is empty. A copy shares memory; see Clone.
type IndexSet struct {
	words []uint64
	count int
}

// Len is how many there are.
func (s *IndexSet) Len() int { return s.count }

// IsZero reports whether the set is empty, for encoding/json.
func (s IndexSet) IsZero() bool { return s.count == 0 }

// Clone returns a set of its own.
func (s *IndexSet) Clone() IndexSet {
	return IndexSet{words: append([]uint64(nil), s.words...), count: s.count}
}

// Has reports whether i is in the set.
func (s *IndexSet) Has(i int) bool {
	return i >= 0 && i/64 < len(s.words) && s.words[i/64]&(1<<(i%64)) != 0
}

// Add puts i, which is not negative, into the set and reports whether it is new.
func (s *IndexSet) Add(i int) bool {
	if s.Has(i) {
		return false
	}
	for i/64 >= len(s.words) {
		s.words = append(s.words, 0)
	}
	s.words[i/64] |= 1 << (i % 64)
	s.count++
	return true
}

// Union puts all of o into the set.
func (s *IndexSet) Union(o *IndexSet) {
	for len(s.words) < len(o.words) {
		s.words = append(s.words, 0)
	}
	s.count = 0
	for i := range s.words {
		if i < len(o.words) {
			s.words[i] |= o.words[i]
		}
		s.count += bits.OnesCount64(s.words[i])
	}
}

// NextFree returns the least number from i on that is not in the set.
func (s *IndexSet) NextFree(i int) int {
	for i/64 < len(s.words) {
		if free := ^s.words[i/64] >> (i % 64); free != 0 {
			return i + bits.TrailingZeros64(free)
		}
		i = (i/64 + 1) * 64
	}
	return i
}

// nextIn returns the least number from i on that is in the set, or -1.
func (s *IndexSet) nextIn(i int) int {
	for i/64 < len(s.words) {
		if set := s.words[i/64] >> (i % 64); set != 0 {
			return i + bits.TrailingZeros64(set)
		}
		i = (i/64 + 1) * 64
	}
	return -1
}

// String is the ranges.
func (s *IndexSet) String() string {
	text, _ := s.ranges(1 << 30)
	return text
}

// ranges writes the set as text, unless that is longer than most.
func (s *IndexSet) ranges(most int) (string, bool) {
	var b strings.Builder
	for first := s.nextIn(0); first >= 0; {
		end := s.NextFree(first)
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(first))
		if end > first+1 {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(end - 1))
		}
		if b.Len() > most {
			return "", false
		}
		first = s.nextIn(end)
	}
	return b.String(), true
}

// bitmapMark begins the text of a bitmap.
const bitmapMark = "bits:"

// MarshalText is the set in its shorter form.
func (s IndexSet) MarshalText() ([]byte, error) {
	if text, ok := s.ranges(len(bitmapMark) + (len(s.words)*8+2)/3*4); ok {
		return []byte(text), nil
	}
	raw := make([]byte, 0, len(s.words)*8)
	for _, w := range s.words {
		raw = binary.LittleEndian.AppendUint64(raw, w)
	}
	return []byte(bitmapMark + base64.StdEncoding.EncodeToString(raw)), nil
}

// maxIndex bounds what a record can make a reader allocate.
const maxIndex = 1 << 24

// UnmarshalText reads either form.
func (s *IndexSet) UnmarshalText(text []byte) error {
	*s = IndexSet{}
	if coded, ok := strings.CutPrefix(string(text), bitmapMark); ok {
		raw, err := base64.StdEncoding.DecodeString(coded)
		if err != nil || len(raw)%8 != 0 || len(raw)*8 > maxIndex {
			return fmt.Errorf("a set of indexes has a bad bitmap of %d bytes", len(raw))
		}
		for ; len(raw) > 0; raw = raw[8:] {
			w := binary.LittleEndian.Uint64(raw)
			s.words, s.count = append(s.words, w), s.count+bits.OnesCount64(w)
		}
		return nil
	}
	if len(text) == 0 {
		return nil
	}
	for _, part := range strings.Split(string(text), ",") {
		from, to, ranged := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		last := first
		if err == nil && ranged {
			last, err = strconv.Atoi(to)
		}
		if err != nil || first < 0 || last < first || last >= maxIndex {
			return fmt.Errorf("%q is not a range of indexes", part)
		}
		for i := first; i <= last; i++ {
			s.Add(i)
		}
	}
	return nil
}
