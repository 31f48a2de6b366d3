//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
)

// check opens the fleet as the restarted program would, and looks whether all
// is as it should be. Stored is whether the killed program knew that its
// change was.
func (c *crash) check(what, op string, stored bool) {
	c.t.Helper()
	t := c.t
	f, err := Open(c.dir, WithLogger(testLogger(t)))
	if err != nil {
		t.Fatalf("%s: open: %v", what, err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Errorf("%s: close: %v", what, err)
		}
	}()
	st, err := f.Get(t.Context(), "web")
	exists := err == nil
	if err != nil && !errors.Is(err, orchestrate.ErrNotFound) {
		t.Fatalf("%s: %v", what, err)
	}
	switch op {
	case "apply", "roll":
		if stored && (!exists || st.Containers[0].Env["VERSION"] != strconv.Itoa(c.version)) {
			t.Fatalf("%s: Apply had returned, and what it stored is lost: %+v", what, st)
		}
		if exists {
			// What was stored comes true without being asked for again.
			completed(t, f, "web")
		}
		apply(t, f, crashService(c.version))
		completed(t, f, "web")
		c.checkRunning(what, f)
	case "restart":
		if err := settled(t.Context(), f); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		c.checkRunning(what, f)
	case "remove":
		if stored && exists {
			t.Fatalf("%s: Remove had returned, and the service is back", what)
		}
		if exists {
			if err := f.Remove(t.Context(), "web"); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if r, err := f.Wait(ctx, "web"); err != nil && !errors.Is(err, orchestrate.ErrNotFound) || r.Err() != nil && err == nil {
			t.Fatalf("%s: wait for the end: %v, %v", what, r, err)
		}
		c.checkRemoved(what, f)
	}
	c.checkLines(what)
	// Of each version one volume is left.
	volumes, err := f.Volumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range volumes {
		if v.Name != "lines" && len(v.Tasks) == 0 {
			if err := f.RemoveVolume(t.Context(), v.Name); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// checkRunning checks a service that has converged.
func (c *crash) checkRunning(what string, f *Fleet) {
	c.t.Helper()
	t := c.t
	// On a busy machine a task that was ready may have missed a check since, and
	// may even have been restarted for it.
	if err := settled(t.Context(), f); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	c.buried(what, f)
	list := tasks(t, f, "web")
	if len(list) != crashReplicas {
		t.Fatalf("%s: tasks: got %+v, want %d", what, list, crashReplicas)
	}
	var ids, containers []string
	pids := map[int]bool{}
	var addrs []netip.Addr
	for _, task := range list {
		if task.State != orchestrate.Ready || task.Stopping != "" || len(task.Containers) != 1 || !task.Containers[0].Running {
			t.Errorf("%s: task: got %+v, want it ready with one container", what, task)
			continue
		}
		ids = append(ids, task.ID)
		containers = append(containers, task.Containers[0].ID)
		pids[task.Containers[0].PID] = true
		addrs = append(addrs, task.Addresses[orchestrate.DefaultNetwork]...)
	}
	slices.Sort(containers)
	slices.SortFunc(addrs, netip.Addr.Compare)
	if got := c.containers(f); !slices.Equal(got, containers) {
		t.Errorf("%s: containers: got %v, want one for each task, %v", what, got, containers)
	}
	if got := c.cgroupProcesses(); !maps.Equal(got, pids) {
		t.Errorf("%s: processes in the fleet's cgroups: got %v, want %v", what, got, pids)
	}
	if got := backends(t, c.dir); !slices.Equal(got, addrs) {
		t.Errorf("%s: the balancer's endpoints: got %v, want those of the running tasks, %v", what, got, addrs)
	}
	addresses := []string{fmt.Sprintf("127.0.0.1:%d", crashPort)}
	for _, a := range virtual(t, f, "web") {
		addresses = append(addresses, at(a, 80))
	}
	for _, address := range addresses {
		counts := map[string]int{}
		for range 40 {
			answer, err := ask(address, "/")
			if err != nil {
				t.Errorf("%s: %v", what, err)
				return
			}
			counts[answer]++
		}
		for answer := range counts {
			id, version, _ := strings.Cut(answer, " ")
			if !slices.Contains(ids, id) || version != strconv.Itoa(c.version) {
				t.Errorf("%s: %s was answered by %q, want one of %v with version %d", what, address, answer, ids, c.version)
			}
		}
		if len(counts) != len(ids) {
			t.Errorf("%s: %s was answered by %v, want all of %v", what, address, counts, ids)
		}
	}
	c.checkHeld(what, f, ids)
}

// buried waits until containers that have ended are gone, which their successors do
// not wait for.
func (c *crash) buried(what string, f *Fleet) {
	c.t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		c.t.Fatal(err)
	}
	defer unix.Close(fd)
	bundles := filepath.Join("/run/orchestrate", stateOf(c.dir), "c")
	if _, err := unix.InotifyAddWatch(fd, bundles, unix.IN_DELETE); err != nil {
		c.t.Fatal(err)
	}
	for buf := make([]byte, 4<<10); len(c.containers(f)) > crashReplicas; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
		if n == 0 {
			return // what is left is told by who called
		}
		if err == nil {
			_, err = unix.Read(fd, buf)
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			c.t.Fatalf("%s: %v", what, err)
		}
	}
}

// checkHeld checks that only these tasks hold something on the node.
func (c *crash) checkHeld(what string, f *Fleet, ids []string) {
	c.t.Helper()
	t, ctx := c.t, c.t.Context()
	slices.Sort(ids)
	same := func(kind string, got []string) {
		t.Helper()
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, ids) {
			t.Errorf("%s: %s: got %v, want those of %v", what, kind, got, ids)
		}
	}
	namespaces, err := f.network.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	same("network namespaces", namespaces)
	attachments, err := f.network.Attachments(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var attached []string
	for _, a := range attachments {
		attached = append(attached, a.Task)
	}
	same("attachments", attached)
	volumes, err := f.volumes.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var mounted []string
	for _, v := range volumes {
		mounted = append(mounted, v.Tasks...)
	}
	same("tasks with volumes", mounted)
	files, err := os.ReadDir(filepath.Join(c.dir, "node", "tasks"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var dirs []string
	for _, d := range files {
		dirs = append(dirs, d.Name())
	}
	same("folders of tasks", dirs)
	// Each shim has a container, but for idle ones: one is kept, and one may
	// just be starting.
	if shims := c.shims(what); len(shims) > len(ids)+2 {
		t.Errorf("%s: shims: got %q, want at most one for each of %v and two idle ones", what, shims, ids)
	}
	for _, prefix := range []string{record.Tasks, record.Statuses, record.Endpoints} {
		c.checkRecords(what, f, prefix, len(ids))
	}
}

// checkRecords waits until there are as many records below a prefix as there
// should be: the agent deletes its own after the leader has deleted a task's.
func (c *crash) checkRecords(what string, f *Fleet, prefix string, want int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	snapshot, err := f.store.List(ctx, prefix)
	if err != nil {
		c.t.Fatal(err)
	}
	changes, err := f.store.Watch(ctx, prefix, snapshot.Revision)
	if err != nil {
		c.t.Fatal(err)
	}
	keys := map[string]bool{}
	for _, item := range snapshot.Items {
		keys[item.Key] = true
	}
	for len(keys) != want {
		batch, ok := <-changes
		if !ok || batch.Err != nil {
			c.t.Errorf("%s: records below %s: got %v, want %d", what, prefix, keys, want)
			return
		}
		for _, change := range batch.Changes {
			if change.Deleted {
				delete(keys, change.Item.Key)
			} else {
				keys[change.Item.Key] = true
			}
		}
	}
}

// checkRemoved checks that nothing of the service is there, but its volume.
func (c *crash) checkRemoved(what string, f *Fleet) {
	c.t.Helper()
	t := c.t
	if got := c.containers(f); len(got) != 0 {
		t.Errorf("%s: containers: got %v, want none", what, got)
	}
	if got := c.cgroupProcesses(); len(got) != 0 {
		t.Errorf("%s: processes in the fleet's cgroups: got %v, want none", what, got)
	}
	if got := backends(t, c.dir); len(got) != 0 {
		t.Errorf("%s: the balancer's endpoints: got %v, want none", what, got)
	}
	if got, err := ask(fmt.Sprintf("127.0.0.1:%d", crashPort), "/"); err == nil {
		t.Errorf("%s: a request was answered: %q", what, got)
	}
	for _, prefix := range []string{record.Services, record.Rollouts, record.Frontends} {
		c.checkRecords(what, f, prefix, 0)
	}
	c.checkHeld(what, f, nil)
}

// checkLines checks that every acknowledged line is in the volume.
func (c *crash) checkLines(what string) {
	c.t.Helper()
	data, err := os.ReadFile(filepath.Join(c.dir, "volumes", "volumes", "default.lines", "data", "lines"))
	if err != nil {
		if len(c.acked) > 0 {
			c.t.Errorf("%s: %v", what, err)
		}
		return
	}
	have := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		have[strings.TrimSuffix(line, "\n")] = true
	}
	for _, line := range c.acked {
		if !have[line] {
			c.t.Errorf("%s: line %q was acknowledged and is lost", what, line)
		}
	}
}

// containers returns the IDs of the containers that exist.
func (c *crash) containers(f *Fleet) []string {
	c.t.Helper()
	list, err := f.runtime.List(c.t.Context(), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	var ids []string
	for _, one := range list {
		ids = append(ids, one.ID)
	}
	return ids
}

// cgroupProcesses returns the numbers of the processes that the kernel counts
// to the fleet's containers.
func (c *crash) cgroupProcesses() map[int]bool {
	c.t.Helper()
	pids := map[int]bool{}
	for _, pattern := range []string{"/sys/fs/cgroup/pids/orchestrate/%s/*/cgroup.procs", "/sys/fs/cgroup/orchestrate/%s/*/cgroup.procs"} {
		files, err := filepath.Glob(fmt.Sprintf(pattern, stateOf(c.dir)))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				continue // the container was removed while we looked
			}
			for _, field := range strings.Fields(string(data)) {
				pid, err := strconv.Atoi(field)
				if err != nil {
					c.t.Fatal(err)
				}
				pids[pid] = true
			}
		}
	}
	return pids
}

// shims returns the shims of the fleet, each of which must have the folder by
// which a later program finds it.
func (c *crash) shims(what string) (found []string) {
	c.t.Helper()
	for _, process := range processesOf(c.t, c.dir) {
		_, rest, ok := strings.Cut(process, " -id ")
		if !ok || !strings.Contains(process, "containerd-shim") {
			continue
		}
		id, _, _ := strings.Cut(rest, " ")
		found = append(found, process)
		if _, err := os.Stat(filepath.Join("/run/orchestrate", stateOf(c.dir), "shims", id)); err != nil && !ends(c.t, process) {
			c.t.Errorf("%s: shim %s is lost: %v", what, process, err)
		}
	}
	return found
}

// backends reads from the kernel where connections are sent to.
func backends(t testing.TB, dir string) []netip.Addr {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := &nftables.Table{Name: "orchestrate-" + fleetID(dir), Family: nftables.TableFamilyINet}
	seen := map[netip.Addr]bool{}
	for _, family := range []string{"4", "6"} {
		set, err := conn.GetSetByName(table, "endpoints"+family)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			t.Fatalf("the balancer's endpoints: %v", err)
		}
		elements, err := conn.GetSetElements(set)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range elements {
			// The value is an address and, padded to four bytes, a port.
			addr, ok := netip.AddrFromSlice(e.Val[:len(e.Val)-4])
			if !ok {
				t.Fatalf("the balancer's endpoints: value %x", e.Val)
			}
			seen[addr] = true
		}
	}
	return slices.SortedFunc(maps.Keys(seen), netip.Addr.Compare)
}
