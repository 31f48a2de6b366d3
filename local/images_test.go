//go:build linux

package local

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

// imageRegistry is a registry on the loopback interface.
type imageRegistry struct {
	t    testing.TB
	url  string
	host string

	mu   sync.Mutex
	hold chan struct{} // while not nil, blobs are not served before it is closed
	held chan struct{} // gets a token when one is held up
}

func startRegistry(t testing.TB) *imageRegistry {
	t.Helper()
	r := &imageRegistry{t: t, held: make(chan struct{}, 100)}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		hold := r.hold
		r.mu.Unlock()
		if hold != nil && req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			r.held <- struct{}{}
			select {
			case <-hold:
			case <-req.Context().Done():
				return
			}
		}
		handler.ServeHTTP(w, req)
	}))
	t.Cleanup(s.Close)
	r.url, r.host = s.URL, strings.TrimPrefix(s.URL, "http://")
	return r
}

// stall holds up blobs until the returned function is called.
func (r *imageRegistry) stall() (release func()) {
	hold := make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold = hold
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.hold = nil
		close(hold)
	}
}

// build makes an image of the test program that differs by a word.
func build(t testing.TB, ref, version string) *image.Image {
	t.Helper()
	img, err := image.FromBinary(ref, binary, image.Options{Command: []string{"serve"}, Labels: map[string]string{"version": version}})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// push has REPO:TAG mean a build of the test program, and returns its digest.
func (r *imageRegistry) push(repo, tag, version string) string {
	r.t.Helper()
	reader := build(r.t, r.host+"/"+repo+":"+tag, version).Reader()
	defer reader.Close()
	blobs := map[string][]byte{}
	var index struct {
		Manifests []struct{ MediaType, Digest string }
	}
	for archive := tar.NewReader(reader); ; {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			r.t.Fatal(err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			r.t.Fatal(err)
		}
		if h.Name == "index.json" {
			if err := json.Unmarshal(data, &index); err != nil {
				r.t.Fatal(err)
			}
		}
		if strings.HasPrefix(h.Name, "blobs/sha256/") && h.Typeflag == tar.TypeReg {
			blobs["sha256:"+path.Base(h.Name)] = data
		}
	}
	base := r.url + "/v2/" + repo
	manifest := index.Manifests[0]
	for digest, data := range blobs {
		if digest != manifest.Digest {
			r.send(http.MethodPost, base+"/blobs/uploads/?digest="+digest, "application/octet-stream", data)
		}
	}
	r.send(http.MethodPut, base+"/manifests/"+tag, manifest.MediaType, blobs[manifest.Digest])
	return manifest.Digest
}

func (r *imageRegistry) send(method, url, contentType string, body []byte) {
	r.t.Helper()
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		r.t.Fatalf("%s %s: %s", method, url, resp.Status)
	}
}

// runsDigest fails the test unless a service has n running containers, all of
// them of one digest.
func runsDigest(t testing.TB, f *Fleet, name, what string, n int, digest string) {
	t.Helper()
	list, err := f.runtime.List(t.Context(), map[string]string{runtime.LabelService: name})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range list {
		if c.State == runtime.Running {
			_, d := runtime.CutDigest(c.Image)
			got = append(got, d)
		}
	}
	if want := slices.Repeat([]string{digest}, n); !slices.Equal(got, want) {
		t.Errorf("%s: the containers run %q, want %d times %s", what, got, n, digest)
	}
}

// A tag that moves is followed by one rollout, and by nothing else: neither by
// a task that is added, nor by a restart of the program, nor by a rollback.
func TestTagMoves(t *testing.T) {
	r := startRegistry(t)
	one := r.push("app", "1", "one")
	dir := newFolder(t)
	f := openAt(t, dir, WithNodes("a", "b"))
	s := service("app", 2)
	s.Containers[0].Image = r.host + "/app:1"
	apply(t, f, s)
	completed(t, f, "app")
	runsDigest(t, f, "app", "at first", 2, one)

	two := r.push("app", "1", "two")
	rescale(t, f, "app", 3)
	runsDigest(t, f, "app", "a task that was added after the move", 3, one)
	pids := pidsOf(t, f, "app")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = openAt(t, dir, WithNodes("a", "b"))
	defer destroy(t, f)
	apply(t, f, withReplicas(s, 3))
	completed(t, f, "app")
	runsDigest(t, f, "app", "after a restart of the program", 3, one)
	if got := pidsOf(t, f, "app"); !slices.Equal(got, pids) {
		t.Errorf("after a restart of the program the processes are %v, want %v", got, pids)
	}

	moves, err := f.Refresh(t.Context(), "app")
	if err != nil || len(moves) != 1 || moves[0].From != one || moves[0].To != two {
		t.Errorf("Refresh: %v, %v; want the move", moves, err)
	}
	completed(t, f, "app")
	runsDigest(t, f, "app", "after Refresh", 3, two)
	if err := f.Rollback(t.Context(), "app", 0); err != nil {
		t.Fatal(err)
	}
	completed(t, f, "app")
	runsDigest(t, f, "app", "after Rollback", 3, one)
	st, err := f.Get(t.Context(), "app")
	if err != nil || st.Containers[0].Image != s.Containers[0].Image || st.Digests[s.Containers[0].Image] != one {
		t.Errorf("Get: image %s, digests %v, %v; want the tag and what it means", st.Containers[0].Image, st.Digests, err)
	}
}

// What was loaded under a reference before is kept while a service runs it.
func TestLoadedImageMoves(t *testing.T) {
	f := openFleet(t)
	const ref = "orchestrate.test/loaded:1"
	put := func(version string) string {
		img := build(t, ref, version)
		if _, err := f.Load(t.Context(), img); err != nil {
			t.Fatal(err)
		}
		return img.Digest()
	}
	one := put("one")
	s := service("app", 1)
	s.Containers[0].Image = ref
	apply(t, f, s)
	two := put("two") // before its first task may have started
	completed(t, f, "app")
	rescale(t, f, "app", 2)
	runsDigest(t, f, "app", "after the tag moved", 2, one)
	s.Containers[0].Pull = runtime.PullNever // it says where to look: here
	apply(t, f, withReplicas(s, 2))
	completed(t, f, "app")
	runsDigest(t, f, "app", "applied again", 2, two)
	if err := f.RemoveImage(t.Context(), ref); !errors.Is(err, orchestrate.ErrInUse) {
		t.Errorf("RemoveImage of an image in use: %v, want ErrInUse", err)
	}
	removed(t, f, "app")
	if err := f.RemoveImage(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	images, err := f.runtime.Images(t.Context())
	if err != nil || slices.ContainsFunc(images, func(i runtime.Image) bool { return strings.HasPrefix(i.Ref, ref) }) {
		t.Errorf("after RemoveImage there are %+v, %v; want nothing of %s", images, err, ref)
	}
}

// A tracked tag needs nobody.
func TestTrackedTagIsFollowed(t *testing.T) {
	r := startRegistry(t)
	one := r.push("app", "1", "one")
	f := openFleet(t)
	s := service("app", 2)
	s.Containers[0].Image = r.host + "/app:1"
	s.Track.Every = 10 * time.Second // the least
	apply(t, f, s)
	completed(t, f, "app")
	runsDigest(t, f, "app", "at first", 2, one)
	events, err := f.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	two := r.push("app", "1", "two")
	for e := range events {
		if e.Kind == orchestrate.ServiceApplied && e.Service == "app" {
			break
		}
	}
	completed(t, f, "app")
	runsDigest(t, f, "app", "after the move", 2, two)
	revisions, err := f.History(t.Context(), "app")
	if err != nil || len(revisions) != 2 || revisions[1].Origin != orchestrate.OriginMoved {
		t.Errorf("the history is %+v, %v; want a second revision that the tag made", revisions, err)
	}
}

func withReplicas(s orchestrate.Service, n int) orchestrate.Service {
	s.Replicas = n
	return s
}

func rescale(t testing.TB, f *Fleet, name string, n int) {
	t.Helper()
	if err := f.Scale(t.Context(), name, n); err != nil {
		t.Fatal(err)
	}
	completed(t, f, name)
}

func removed(t testing.TB, f *Fleet, name string) {
	t.Helper()
	if err := f.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if r := wait(t, f, name); r.Outcome != orchestrate.RolloutRemoved {
		t.Fatalf("%v, want it removed", r)
	}
}

// pidsOf returns the processes of a service's containers, sorted.
func pidsOf(t testing.TB, f *Fleet, name string) (pids []int) {
	t.Helper()
	list, err := f.runtime.List(t.Context(), map[string]string{runtime.LabelService: name})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if c.State == runtime.Running {
			pids = append(pids, c.PID)
		}
	}
	slices.Sort(pids)
	return pids
}

// With stop first, nothing stops before the new image is there.
func TestStopFirstPullsBefore(t *testing.T) {
	r := startRegistry(t)
	one := r.push("app", "1", "one")
	f := openFleet(t)
	s := service("app", 1)
	s.Containers[0].Image = r.host + "/app:1"
	s.Update.Order = orchestrate.StopFirst
	apply(t, f, s)
	completed(t, f, "app")
	pids := pidsOf(t, f, "app")

	two := r.push("app", "2", "two")
	release := r.stall()
	for len(r.held) > 0 {
		<-r.held
	}
	s.Containers[0].Image = r.host + "/app:2"
	apply(t, f, s)
	<-r.held // the pull is under way, and gets nothing
	runsDigest(t, f, "app", "while the pull is held up", 1, one)
	if got := pidsOf(t, f, "app"); !slices.Equal(got, pids) {
		t.Errorf("while the pull is held up the processes are %v, want %v", got, pids)
	}
	tasks, err := f.Tasks(t.Context(), "app")
	if err != nil || len(tasks) != 1 || tasks[0].Stopping != "" || tasks[0].State != orchestrate.Ready {
		t.Errorf("while the pull is held up the tasks are %+v, %v; want the old one, ready", tasks, err)
	}
	release()
	completed(t, f, "app")
	runsDigest(t, f, "app", "after it", 1, two)

	// What is not there stops nothing, and the result says so.
	s.Containers[0].Image = r.host + "/app:3"
	pids = pidsOf(t, f, "app")
	apply(t, f, s)
	result := wait(t, f, "app")
	if result.Outcome != orchestrate.RolloutFailed || result.Failure == nil || result.Failure.Kind != orchestrate.FailedImage {
		t.Errorf("with an image that is not there: %+v, want a failure of kind image", result)
	}
	if got := pidsOf(t, f, "app"); !slices.Equal(got, pids) {
		t.Errorf("with an image that is not there the processes are %v, want those from before, %v", got, pids)
	}
}

// Other resources restart nothing: the same process has the new limits.
func TestResourcesChangeInPlace(t *testing.T) {
	f := openFleet(t)
	s := service("app", 2)
	s.Containers[0].Resources = orchestrate.Resources{CPULimit: 500, MemoryLimit: 64 * orchestrate.MiB}
	apply(t, f, s)
	completed(t, f, "app")
	pids := pidsOf(t, f, "app")
	limits := func(what string, memory int64) {
		t.Helper()
		if got := pidsOf(t, f, "app"); !slices.Equal(got, pids) {
			t.Errorf("%s: the processes are %v, want those from before, %v", what, got, pids)
		}
		tasks, err := f.Tasks(t.Context(), "app")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if stats, err := f.Stats(t.Context(), task.ID, ""); err != nil || stats.MemoryLimit != memory {
				t.Errorf("%s: the memory limit of %s is %d, %v; want %d", what, task.ID, stats.MemoryLimit, err, memory)
			}
		}
	}
	s.Containers[0].Resources = orchestrate.Resources{CPULimit: 250, MemoryLimit: 96 * orchestrate.MiB}
	apply(t, f, s)
	completed(t, f, "app")
	limits("raised", 96*orchestrate.MiB)
	s.Containers[0].Resources = orchestrate.Resources{CPULimit: 250, MemoryLimit: 48 * orchestrate.MiB}
	apply(t, f, s)
	completed(t, f, "app")
	limits("lowered", 48*orchestrate.MiB)
}

// An image is in use by whatever names it, however that is spelled.
func TestRemoveImageInUse(t *testing.T) {
	f := openFleet(t)
	img := build(t, "held", "one")
	pinned := "held@" + img.Digest()
	job := func(ref string) orchestrate.Job {
		return orchestrate.Job{Name: "job", Suspend: true, Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: ref}}}}
	}
	none := func(ref string) orchestrate.Service {
		s := service("service", 0)
		s.Replicas, s.Containers[0].Image = orchestrate.None, ref
		return s
	}
	run := job("held")
	run.Name, run.Suspend = "", false
	for _, tt := range []struct {
		name   string
		uses   string
		object orchestrate.Object
		ref    string
		used   bool
	}{
		{"a service", "service", none("held"), "held", true},
		{"a service, by the tag that is meant", "service", none("held"), "held:latest", true},
		{"a service, by the full name", "service", none("docker.io/library/held"), "held", true},
		{"a service, by a digest", "service", none(pinned), "held", true},
		{"a service, and its digest is removed", "service", none("held"), pinned, true},
		{"another digest", "service", none("held"), "held@sha256:" + strings.Repeat("0", 64), false},
		{"another tag", "service", none("held"), "held:2", false},
		{"a job", "job", job("held"), "held", true},
		{"a cron job", "cron", orchestrate.CronJob{Name: "cron", Schedule: "@yearly", Job: run}, "held", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := f.Load(t.Context(), img); err != nil {
				t.Fatal(err)
			}
			apply(t, f, tt.object)
			var used *orchestrate.InUseError
			err := f.RemoveImage(t.Context(), tt.ref)
			if errors.As(err, &used) != tt.used || !tt.used && err != nil {
				t.Errorf("RemoveImage(%s): got %v, want an InUseError: %v", tt.ref, err, tt.used)
			}
			if err := f.Remove(t.Context(), tt.uses); err != nil {
				t.Fatal(err)
			}
			if err := f.RemoveImage(t.Context(), "held"); err != nil {
				t.Errorf("RemoveImage of what nobody names: %v", err)
			}
		})
	}
}
