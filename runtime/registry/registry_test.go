package registry_test

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/orchestrate-go/orchestrate/runtime"
	ours "github.com/orchestrate-go/orchestrate/runtime/registry"
)

// manifest is the least that a registry takes.
const manifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`

// put makes a reference of the registry at url mean content, and returns its
// digest.
func put(t *testing.T, url, content string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/vnd.oci.image.index.v1+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("put %s: %s", url, resp.Status)
	}
	return resp.Header.Get("Docker-Content-Digest")
}

func TestResolve(t *testing.T) {
	right := runtime.Credentials{Username: "user", Password: "secret"}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	var blobs int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if r.Method != http.MethodPut && (runtime.Credentials{Username: user, Password: password}) != right {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			blobs++
		}
		handler.ServeHTTP(w, r)
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	url := server.URL + "/v2/team/app/manifests/1"
	first := put(t, url, manifest)

	var asked []string
	r := &ours.Resolver{Credentials: func(_ context.Context, host string) (runtime.Credentials, error) {
		asked = append(asked, host)
		return right, nil
	}}
	ref := host + "/team/app:1"
	for _, policy := range []runtime.PullPolicy{runtime.PullMissing, runtime.PullAlways} {
		if got, err := r.Resolve(t.Context(), ref, runtime.PullOptions{Policy: policy}); err != nil || got != first {
			t.Errorf("policy %q: got %s, %v; want %s", policy, got, err, first)
		}
	}
	if len(asked) == 0 || asked[0] != host {
		t.Errorf("credentials were asked for %q, want %s", asked, host)
	}
	second := put(t, url, manifest+"\n")
	if second == first {
		t.Fatal("the test's two manifests have one digest")
	}
	if got, err := r.Resolve(t.Context(), ref, runtime.PullOptions{}); err != nil || got != second {
		t.Errorf("after the tag moved: got %s, %v; want %s", got, err, second)
	}
	if got, err := r.Resolve(t.Context(), runtime.Pinned(ref, first), runtime.PullOptions{}); err != nil || got != first {
		t.Errorf("with a digest: got %s, %v; want that, %s", got, err, first)
	}
	var bad *runtime.SpecError
	for what, tc := range map[string]struct {
		ref  string
		opts runtime.PullOptions
		r    *ours.Resolver
		is   error
	}{
		"no such tag":        {ref: host + "/team/app:2", is: runtime.ErrImageNotFound},
		"no such repository": {ref: host + "/none:1", is: runtime.ErrImageNotFound},
		"never":              {ref: ref, opts: runtime.PullOptions{Policy: runtime.PullNever}, is: runtime.ErrImageNotFound},
		"no credentials":     {ref: ref, r: new(ours.Resolver), is: runtime.ErrUnauthorized},
	} {
		resolver := r
		if tc.r != nil {
			resolver = tc.r
		}
		if got, err := resolver.Resolve(t.Context(), tc.ref, tc.opts); !errors.Is(err, tc.is) {
			t.Errorf("%s: got %q, %v; want %v", what, got, err, tc.is)
		}
	}
	if _, err := r.Resolve(t.Context(), "Not A Reference", runtime.PullOptions{}); !errors.As(err, &bad) {
		t.Errorf("of what is no reference: got %v, want a *SpecError", err)
	}
	server.Close()
	if _, err := r.Resolve(t.Context(), ref, runtime.PullOptions{}); err == nil || errors.Is(err, runtime.ErrImageNotFound) || errors.Is(err, runtime.ErrUnauthorized) {
		t.Errorf("of a registry that does not answer: got %v, want an error that may pass", err)
	}
	if blobs != 0 {
		t.Errorf("%d blobs were fetched, want none", blobs)
	}
}
