package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	in := strings.Join([]string{
		`{"Action":"start","Package":"m/store"}`,
		`{"Action":"run","Package":"m/store","Test":"TestGood"}`,
		`{"Action":"output","Package":"m/store","Test":"TestGood","Output":"    a_test.go:12: seed=7, 12 faults\n"}`,
		`{"Action":"output","Package":"m/store","Test":"TestGood","Output":"    a_test.go:13: of no interest\n"}`,
		`{"Action":"output","Package":"m/store","Test":"TestGood","Output":"    b.go:9: [rapid] OK, passed 100 tests (2ms)\n"}`,
		`{"Action":"pass","Package":"m/store","Test":"TestGood","Elapsed":0.2}`,
		`{"Action":"output","Package":"m/store","Test":"TestBad","Output":"    a_test.go:20: got 1, want 2\n"}`,
		`{"Action":"fail","Package":"m/store","Test":"TestBad","Elapsed":0.1}`,
		`{"Action":"skip","Package":"m/store","Test":"TestElsewhere"}`,
		`{"Action":"fail","Package":"m/store","Elapsed":1.26}`,
		`{"ImportPath":"m/x","Action":"build-output","Output":"x.go:1: undefined: y\n"}`,
		`no JSON`,
	}, "\n")
	var out strings.Builder
	r := newReport(&out)
	if err := r.read(strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	r.end()
	const want = `    a_test.go:20: got 1, want 2
fail      1.3s  m/store
x.go:1: undefined: y
no JSONran: 1 tests passed, 2 failed or did not build, 1 skipped
  skipped: m/store TestElsewhere
  1 properties held in 100 random cases
  store TestGood: seed=7, 12 faults
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	if r.failed == 0 {
		t.Error("a run with failures is none")
	}
}
