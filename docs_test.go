package orchestrate_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestProductionGuideNamesTests holds that each fault in docs/production.md names
// tests that hold what is said there, and that these exist.
func TestProductionGuideNamesTests(t *testing.T) {
	data, err := os.ReadFile("docs/production.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(data), "| fault | what happens | tests |\n|---|---|---|\n")
	if !found {
		t.Fatal("the guide has no table of faults")
	}
	name := regexp.MustCompile("`([a-z/]+)\\.(Test[A-Za-z0-9]+)`")
	rows := 0
	for line := range strings.SplitSeq(table, "\n") {
		if !strings.HasPrefix(line, "|") {
			break
		}
		rows++
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 3 {
			t.Errorf("%d cells in %s", len(cells), line)
			continue
		}
		tests := name.FindAllStringSubmatch(cells[2], -1)
		if len(tests) == 0 || len(tests) != strings.Count(cells[2], "`")/2 {
			t.Errorf("%q names %d tests in %q; want such as `node.TestX`, and no other code", strings.TrimSpace(cells[0]), len(tests), cells[2])
		}
		for _, test := range tests {
			if !hasTest(t, test[1], test[2]) {
				t.Errorf("%q names %s of %s, which does not exist", strings.TrimSpace(cells[0]), test[2], test[1])
			}
		}
	}
	if rows < 25 {
		t.Errorf("the table has %d rows, want all the faults that there are", rows)
	}
}

// hasTest reports whether a folder, of which the root is named for its package,
// has a test.
func hasTest(t *testing.T, folder, name string) bool {
	t.Helper()
	if folder == "orchestrate" {
		folder = "."
	}
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}
