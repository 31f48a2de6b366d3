//go:build linux

package containerd_test

import (
	"bytes"
	stdcontext "context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

// roots remembers the folder of each runtime that a harness opened.
var roots sync.Map

// startRegistry runs a registry on the loopback interface and returns its
// host and port. With credentials, only they may read.
func startRegistry(t testing.TB, credentials *runtime.Credentials) string {
	t.Helper()
	handler := registry.New(registry.Logger(discard()))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		reads := r.Method == http.MethodGet || r.Method == http.MethodHead
		if credentials != nil && reads && (runtime.Credentials{Username: user, Password: password}) != *credentials {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// startTokenRegistry runs a registry that wants a token for reading, which its
// server of tokens gives for credentials (the Bearer scheme of the distribution
// project's token specification).
func startTokenRegistry(t testing.TB, credentials runtime.Credentials) string {
	t.Helper()
	const token = "a-token"
	handler := registry.New(registry.Logger(discard()))
	mux := http.NewServeMux()
	s := httptest.NewServer(mux)
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user == "" { // containerd's client sends a form where it has a password
			user, password = r.PostFormValue("username"), r.PostFormValue("password")
		}
		if (runtime.Credentials{Username: user, Password: password}) != credentials {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"token": "`+token+`", "access_token": "`+token+`"}`)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		reads := r.Method == http.MethodGet || r.Method == http.MethodHead
		if reads && r.Header.Get("Authorization") != "Bearer "+token {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token",service="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	})
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// push puts a random image of two layers in a registry.
func push(t testing.TB, ref string) v1.Image {
	t.Helper()
	img, err := random.Image(64<<10, 2)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config.Entrypoint = []string{"/none"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	host, path, _ := strings.Cut(ref, "/")
	repo, tag, _ := strings.Cut(path, ":")
	base := "http://" + host + "/v2/" + repo
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		body, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		send(t, http.MethodPost, base+"/blobs/uploads/?digest="+digest.String(), "", body)
	}
	rawConfig, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	configName, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	send(t, http.MethodPost, base+"/blobs/uploads/?digest="+configName.String(), "", bytes.NewReader(rawConfig))
	manifest, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	mediaType, err := img.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	send(t, http.MethodPut, base+"/manifests/"+tag, string(mediaType), bytes.NewReader(manifest))
	return img
}

// send does what is left of pushing: the client of go-containerregistry brings
// the keychains of half a dozen clouds.
func send(t testing.TB, method, url, contentType string, body io.Reader) {
	t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("%s %s: %s", method, url, resp.Status)
	}
}

func TestPull(t *testing.T) {
	rt := open(t, t.TempDir())
	host := startRegistry(t, nil)
	ref := host + "/app:1"
	img := push(t, ref)
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	var last runtime.Progress
	got, err := rt.Pull(t.Context(), ref, runtime.PullOptions{Progress: func(p runtime.Progress) {
		if p.Done < last.Done || p.Total < last.Total {
			t.Errorf("progress went from %+v to %+v: want counts that grow", last, p)
		}
		last = p
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != want.String() || got.Ref != ref || got.Entrypoint[0] != "/none" || got.Platform != "linux/amd64" {
		t.Errorf("got %+v, want %s", got, want)
	}
	if last.Done != last.Total || last.Done < 128<<10 || last.Ref != ref {
		t.Errorf("the last progress is %+v: want all of at least 128 KiB", last)
	}

	// The tag moves; only PullAlways follows.
	moved := push(t, ref)
	want2, _ := moved.Digest()
	for policy, want := range map[runtime.PullPolicy]v1.Hash{runtime.PullMissing: want, runtime.PullNever: want, runtime.PullAlways: want2} {
		if got, err := rt.Resolve(t.Context(), ref, runtime.PullOptions{Policy: policy}); err != nil || got != want.String() {
			t.Errorf("Resolve with policy %q: got %s, %v; want %s", policy, got, err, want)
		}
	}
	for policy, want := range map[runtime.PullPolicy]v1.Hash{runtime.PullMissing: want, runtime.PullNever: want} {
		if got, err = rt.Pull(t.Context(), ref, runtime.PullOptions{Policy: policy}); err != nil || got.Digest != want.String() {
			t.Errorf("policy %q: got %s, %v; want the image that is present, %s", policy, got.Digest, err, want)
		}
	}
	if got, err = rt.Pull(t.Context(), ref, runtime.PullOptions{Policy: runtime.PullAlways}); err != nil || got.Digest != want2.String() {
		t.Errorf("PullAlways: got %s, %v; want the new %s", got.Digest, err, want2)
	}
	// What the tag was is fetched by its digest.
	pinned := runtime.Pinned(ref, want.String())
	if got, err = rt.Pull(t.Context(), pinned, runtime.PullOptions{}); err != nil || got.Digest != want.String() || got.Ref != pinned {
		t.Errorf("by the first digest: got %s, %s, %v; want %s", got.Ref, got.Digest, err, pinned)
	}
	if err := rt.RemoveImage(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if _, err = rt.Pull(t.Context(), ref, runtime.PullOptions{Policy: runtime.PullNever}); !errors.Is(err, runtime.ErrImageNotFound) {
		t.Errorf("after RemoveImage: got %v, want ErrImageNotFound", err)
	}
}

func TestPullErrors(t *testing.T) {
	rt := open(t, t.TempDir())
	host := startRegistry(t, nil)
	push(t, host+"/app:1")
	if _, err := rt.Pull(t.Context(), host+"/app:1", runtime.PullOptions{Platform: "linux/s390x"}); !errors.Is(err, runtime.ErrPlatform) {
		t.Errorf("another platform: got %v, want ErrPlatform", err)
	}
	if _, err := rt.Pull(t.Context(), host+"/other:1", runtime.PullOptions{}); !errors.Is(err, runtime.ErrImageNotFound) {
		t.Errorf("another name: got %v, want ErrImageNotFound", err)
	}
	var spec *runtime.SpecError
	if _, err := rt.Pull(t.Context(), "NOT A REFERENCE", runtime.PullOptions{}); !errors.As(err, &spec) {
		t.Errorf("no reference: got %v, want a *SpecError", err)
	}
	if _, err := rt.Pull(t.Context(), "127.0.0.1:1/app:1", runtime.PullOptions{}); err == nil || errors.Is(err, runtime.ErrImageNotFound) {
		t.Errorf("a registry that is down: got %v, want an error that is not ErrImageNotFound", err)
	}
	ctx, cancel := stdcontext.WithCancel(t.Context())
	cancel()
	if _, err := rt.Pull(ctx, host+"/app:1", runtime.PullOptions{}); !errors.Is(err, stdcontext.Canceled) {
		t.Errorf("an ended context: got %v, want context.Canceled", err)
	}
}

func TestPullWithCredentials(t *testing.T) {
	rt := open(t, t.TempDir())
	right := runtime.Credentials{Username: "user", Password: "secret"}
	host := startRegistry(t, &right)
	ref := host + "/private:1"
	push(t, ref)
	for name, given := range map[string]*runtime.Credentials{
		"none": nil, "wrong": {Username: "user", Password: "guess"},
	} {
		opts := runtime.PullOptions{}
		if given != nil {
			opts.Credentials = func(stdcontext.Context, string) (runtime.Credentials, error) { return *given, nil }
		}
		if _, err := rt.Pull(t.Context(), ref, opts); !errors.Is(err, runtime.ErrUnauthorized) {
			t.Errorf("%s: got %v, want ErrUnauthorized", name, err)
		}
	}
	tokens := startTokenRegistry(t, right)
	push(t, tokens+"/private:1")
	for _, given := range []runtime.Credentials{{Username: "user", Password: "guess"}, right} { // an image that is there is not asked for
		_, err := rt.Pull(t.Context(), tokens+"/private:1", runtime.PullOptions{
			Credentials: func(stdcontext.Context, string) (runtime.Credentials, error) { return given, nil },
		})
		if given == right && err != nil || given != right && !errors.Is(err, runtime.ErrUnauthorized) {
			t.Errorf("password %q for a token: got %v", given.Password, err)
		}
	}
	if _, err := rt.Pull(t.Context(), tokens+"/private:1", runtime.PullOptions{Policy: runtime.PullAlways}); !errors.Is(err, runtime.ErrUnauthorized) {
		t.Errorf("no credentials for a token: got %v, want ErrUnauthorized", err)
	}
	asked := 0
	_, err := rt.Pull(t.Context(), ref, runtime.PullOptions{Credentials: func(_ stdcontext.Context, h string) (runtime.Credentials, error) {
		asked++
		if h != host {
			t.Errorf("asked for host %q, want %q", h, host)
		}
		return right, nil
	}})
	if err != nil || asked != 1 {
		t.Errorf("right credentials: got %v after they were asked for %d times; want nil, once", err, asked)
	}
	boom := errors.New("no key store")
	_, err = rt.Pull(t.Context(), ref, runtime.PullOptions{Policy: runtime.PullAlways, Credentials: func(stdcontext.Context, string) (runtime.Credentials, error) {
		return runtime.Credentials{}, boom
	}})
	if !errors.Is(err, boom) {
		t.Errorf("credentials that fail: got %v, want that error", err)
	}
}

func TestHostileImport(t *testing.T) {
	rt := open(t, t.TempDir())
	var archive *runtime.ArchiveError
	if _, err := rt.Import(t.Context(), bytes.NewReader([]byte(strings.Repeat("rubbish ", 500)))); !errors.As(err, &archive) {
		t.Errorf("got %v, want a *ArchiveError", err)
	}
}

// An image that is removed keeps its layers for as long as a container runs
// from them.
func TestRemoveImageInUse(t *testing.T) {
	rt := open(t, t.TempDir())
	start(t, rt, runtime.Spec{ID: "a", Args: []string{"ignore"}})
	if err := rt.RemoveImage(t.Context(), testImage); err != nil {
		t.Fatal(err)
	}
	code, err := rt.Exec(t.Context(), "a", runtime.Exec{Args: []string{"/program", "exit=3"}})
	if err != nil || code != 3 {
		t.Errorf("exec of the image's program: got %d, %v; want 3", code, err)
	}
	if err := rt.Start(t.Context(), runtime.Spec{ID: "b", Image: testImage}); !errors.Is(err, runtime.ErrImageNotFound) {
		t.Errorf("Start: got %v, want ErrImageNotFound", err)
	}
}

// An archive of docker save is known by its short and its full name.
func TestImportDockerSave(t *testing.T) {
	rt := open(t, t.TempDir())
	img, err := random.Image(1024, 1)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", goruntime.GOARCH
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("app:7")
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := tarball.Write(tag, img, &archive); err != nil {
		t.Fatal(err)
	}
	list, err := rt.Import(t.Context(), &archive)
	if err != nil || len(list) != 1 {
		t.Fatalf("got %v, %v; want one image", list, err)
	}
	for _, ref := range []string{"app:7", "docker.io/library/app:7"} {
		if _, err := rt.Pull(t.Context(), ref, runtime.PullOptions{Policy: runtime.PullNever}); err != nil {
			t.Error(err)
		}
	}
	if err := rt.RemoveImage(t.Context(), "app:7"); err != nil {
		t.Fatal(err)
	}
	if _, err := rt.Pull(t.Context(), "app:7", runtime.PullOptions{Policy: runtime.PullNever}); !errors.Is(err, runtime.ErrImageNotFound) {
		t.Errorf("after RemoveImage: got %v, want ErrImageNotFound", err)
	}
}

// An image is known by each way to write its name, whichever it was brought by.
func TestWaysToWriteAReference(t *testing.T) {
	rt := open(t, t.TempDir())
	for brought, others := range map[string][]string{
		"short:7":                   {"docker.io/library/short:7", "library/short:7", "index.docker.io/library/short:7"},
		"untagged":                  {"untagged:latest", "docker.io/library/untagged", "docker.io/library/untagged:latest"},
		"tagged:latest":             {"tagged", "docker.io/library/tagged"},
		"docker.io/library/full:1":  {"full:1", "library/full:1"},
		"acme/app":                  {"acme/app:latest", "docker.io/acme/app", "docker.io/acme/app:latest"},
		"host.test:5000/team/app":   {"host.test:5000/team/app:latest"},
		"host.test/team/app:latest": {"host.test/team/app"},
	} {
		img, err := image.FromBinary(brought, program, image.Options{})
		if err != nil {
			t.Fatal(err)
		}
		archive := img.Reader()
		if _, err := rt.Import(t.Context(), archive); err != nil {
			t.Fatal(err)
		}
		if err := archive.Close(); err != nil {
			t.Fatal(err)
		}
		for _, ref := range append(others, brought) {
			never := runtime.PullOptions{Policy: runtime.PullNever}
			got, err := rt.Pull(t.Context(), ref, never)
			if err != nil {
				t.Errorf("%s by the name %s: %v", brought, ref, err)
				continue
			}
			if digest, err := rt.Resolve(t.Context(), ref, never); err != nil || digest != got.Digest {
				t.Errorf("resolve %s, which is %s: got %q, %v; want %q", ref, brought, digest, err, got.Digest)
			}
		}
		if err := rt.RemoveImage(t.Context(), others[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := rt.Pull(t.Context(), brought, runtime.PullOptions{Policy: runtime.PullNever}); !errors.Is(err, runtime.ErrImageNotFound) {
			t.Errorf("%s after RemoveImage(%s): got %v, want ErrImageNotFound", brought, others[0], err)
		}
	}
}
