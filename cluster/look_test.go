//go:build linux

package cluster_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/leak"
)

// What the kernel says, whatever agents and the store do.

// containers are the processes of containers, by node and task. They are found by
// their cgroups, which have the state folder of the node's runtime and the
// container's ID in their names.
func (w *world) containers() map[string]map[string]int {
	states := map[string]string{} // nodes by state folder
	all := map[string]map[string]int{}
	for node, state := range w.states() {
		states[state] = node
	}
	for _, node := range w.nodes {
		all[node] = map[string]int{}
	}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid := 0
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
			continue
		}
		// A shim on its way to be runc, and runc on its way to be the program, are
		// not yet the container.
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil || !strings.HasPrefix(string(line), "/program\x00") {
			continue
		}
		groups, err := os.ReadFile("/proc/" + e.Name() + "/cgroup")
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(groups), "/orchestrate/")
		state, rest, _ := strings.Cut(rest, "/")
		id, _, _ := strings.Cut(rest, "\n")
		if node := states[state]; node != "" {
			task, _, _ := cutContainer(filepath.Base(id))
			all[node][task] = pid
		}
	}
	return all
}

// states are the names of the state folders of the nodes' runtimes.
func (w *world) states() map[string]string {
	all := map[string]string{}
	for _, node := range w.nodes {
		_ = w.Host(node).Do(func() error {
			entries, err := os.ReadDir("/run/orchestrate")
			for _, e := range entries {
				all[node] = e.Name()
			}
			return err
		})
	}
	return all
}

// cutContainer takes TASK.cINDEX.ATTEMPT apart.
func cutContainer(id string) (task, rest string, ok bool) {
	i := strings.LastIndex(id, ".c")
	if i < 0 {
		return id, "", false
	}
	return id[:i], id[i:], true
}

// namespacesOn are the tasks whose network namespaces are mounted on a node.
func (w *world) namespacesOn(node string) (tasks []string, err error) {
	h := w.Host(node)
	err = h.Do(func() error {
		entries, err := os.ReadDir(filepath.Join(h.Dir, "state", "network", "netns"))
		for _, e := range entries {
			tasks = append(tasks, e.Name())
		}
		return err
	})
	slices.Sort(tasks)
	return tasks, err
}

// add has the ledger keep a line, and returns by which slot.
func (w *world) add(ctx context.Context, node, line string) (slot string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.ledgerURL(node)+"/add", strings.NewReader(line))
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s", resp.Status)
	}
	return resp.Header.Get("Host-Name"), nil
}

// read returns the lines of whichever slot answers.
func (w *world) read(node string) (slot string, lines []string, err error) {
	resp, err := client.Get(w.ledgerURL(node) + "/lines")
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.Header.Get("Host-Name"), strings.Split(string(data), "\n"), err
}

func (w *world) ledgerURL(node string) string {
	return "http://" + netip.AddrPortFrom(w.address(node), ledgerPort).String()
}

// look takes stock of a host. What is found by /proc and by cgroups is that of all
// hosts.
func (w *world) look(host string) (m leak.Machine) {
	w.Helper()
	h := w.Host(host)
	err := h.Do(func() (err error) {
		m, err = leak.Look(filepath.Join(h.Dir, "state"))
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	return m
}

// nothingOn fails the test if anything of an agent is left on its machine. State is
// the name of the state folder that its runtime had.
func (w *world) nothingOn(node, state string) {
	w.Helper()
	for _, left := range w.look(node).Since(w.pristine[node]) {
		if kind, what, _ := strings.Cut(left, ": "); w.belongs(node, state, kind, what) {
			w.Errorf("left on %s: %s", node, left)
		}
	}
}

// belongs reports whether something that was found on a host is the host's.
func (w *world) belongs(node, state, kind, what string) bool {
	switch kind {
	case "open file": // of this program
		return false
	case "process", "cgroup":
		return strings.Contains(what, "/"+state) || strings.Contains(what, w.Host(node).Dir)
	}
	return true
}
