//go:build linux

package cluster_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cluster"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/internal/leak"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/embed"
)

// TestLifecycle has a fleet of three nodes, and what comes and goes of it: who may
// join, what of a published port is where, a node that is expelled and joins anew,
// machines that are cleared, and a snapshot that all of it goes on from.
func TestLifecycle(t *testing.T) {
	opts := brisk
	opts.controls, opts.nodes, opts.here = 1, 3, true
	w := newWorld(t, opts)
	w.up(w.web(3, 18080))
	t.Run("join", w.testJoin)
	t.Run("ingress", w.testIngress)
	t.Run("expel", w.testExpel)
	t.Run("destroy", w.testDestroy)
	t.Run("restore", w.testRestore)
}

// testJoin has machines that may not join refused, each for what is wrong.
func (w *world) testJoin(t *testing.T) {
	token := func(opts identity.TokenOptions) string {
		t.Helper()
		token, err := w.control.Registrar().NewToken(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		return token.Text()
	}
	kept, err := os.ReadFile(w.shared(fileToken + "n1"))
	if err != nil {
		t.Fatal(err)
	}
	used, good := string(kept), token(identity.TokenOptions{})
	// parts are the mark, the name, the secret and the authority's hash.
	parts, other := strings.Split(good, "."), strings.Split(used, ".")
	parts[2] = other[2]
	wrong := strings.Join(parts, ".")
	before, err := leak.Look()
	if err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]struct {
		name, token string
		want        error
	}{
		"a token with another secret":       {"n9", wrong, identity.ErrToken},
		"a token that has expired":          {"n9", token(identity.TokenOptions{TTL: time.Nanosecond}), identity.ErrTokenExpired},
		"a token that was used":             {"n9", used, identity.ErrToken}, // it is for n1
		"a token that was used, its name":   {"n1", used, identity.ErrTokenUsed},
		"a token of a control plane":        {"n9", token(identity.TokenOptions{Role: identity.Control}), identity.ErrToken},
		"a token for another name":          {"n9", token(identity.TokenOptions{Name: "n8"}), identity.ErrToken},
		"a name in use":                     {"n1", good, identity.ErrNameInUse},
		"a name in use, with its own token": {"n1", token(identity.TokenOptions{Name: "n1"}), identity.ErrNameInUse},
		"a token of another fleet":          {"n9", strings.Join(append(parts[:3:3], strings.Repeat("a", 52)), "."), identity.ErrAuthority},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		a, err := cluster.OpenAgent(ctx, filepath.Join(t.TempDir(), "agent"), cluster.AgentOptions{
			Name: try.name, Address: w.IPv4, Control: w.addresses(w.controls), Token: try.token,
		})
		cancel()
		if !errors.Is(err, try.want) {
			t.Errorf("%s: got %v, want %v", what, err, try.want)
		}
		if err == nil {
			_ = a.Destroy(t.Context())
		}
	}
	var option *cluster.OptionError
	if _, err := cluster.OpenAgent(t.Context(), filepath.Join(t.TempDir(), "agent"), cluster.AgentOptions{
		Name: "n9", Address: w.IPv4, Control: w.addresses(w.controls), Token: good[:len(good)-1],
	}); !errors.As(err, &option) || option.Option != "Token" {
		t.Errorf("a token that is cut off: got %v, want an OptionError of Token", err)
	}
	after, err := leak.Look()
	if err != nil {
		t.Fatal(err)
	}
	for _, left := range after.Since(before) {
		// Processes and cgroups are those of all hosts.
		if kind, _, _ := strings.Cut(left, ": "); kind != "open file" && kind != "process" && kind != "cgroup" {
			t.Errorf("who was refused left on the machine: %s", left)
		}
	}
	// None of it has used the good token up.
	m, err := identity.ParseToken(good)
	if err == nil {
		_, err = identity.Join(t.Context(), identity.JoinOptions{
			Address: netip.AddrPortFrom(w.IPv4, cluster.DefaultPorts.Join).String(), Token: m, Dir: t.TempDir(),
			ID: identity.ID{Role: identity.Node, Name: "n9"},
		})
	}
	if err != nil {
		t.Errorf("join with the good token after all: %v", err)
	}
	if err := w.control.Expel(t.Context(), "n9"); err != nil {
		t.Errorf("Expel of a node that has joined and never run: %v", err)
	}

	// A control plane of a name that is there already is refused, and leaves nothing
	// that would keep another one out.
	if _, err := w.control.Invite(t.Context(), "a", w.Host("n1").IPv4); !errors.Is(err, embed.ErrInUse) {
		t.Errorf("Invite of a second control plane a: got %v, want ErrInUse", err)
	}
	if members, err := w.control.Etcd().Members(t.Context()); err != nil || len(members) != 1 {
		t.Errorf("after an Invite that was refused etcd has %+v, %v; want a alone", members, err)
	}
}

// from asks a node at one of its addresses which task answers, and whom it saw.
func (w *world) from(at netip.Addr, port uint16) (task string, client netip.Addr, err error) {
	text, err := w.getAt(at, port, "/from")
	if err != nil {
		return "", client, err
	}
	task, seen, _ := strings.Cut(text, " ")
	client, err = netip.ParseAddr(seen)
	return task, client, err
}

// owns reports whether an address is one of a node's.
func (w *world) owns(node string, a netip.Addr) (is bool) {
	err := w.Host(node).Do(func() error {
		addrs, err := net.InterfaceAddrs()
		for _, own := range addrs {
			if p, err := netip.ParsePrefix(own.String()); err == nil && p.Addr() == a {
				is = true
			}
		}
		return err
	})
	if err != nil {
		w.Error(err)
	}
	return is
}

// testIngress asks containers for the address of whoever asks them, through ports
// that lead to all tasks and through such that lead to the node's own.
func (w *world) testIngress(t *testing.T) {
	s := w.web(1, 18082)
	s.Name, s.Ports[0].Ingress = "door", orchestrate.IngressLocal
	w.up(s)
	places := func(service string) map[string]string { // nodes by task
		all := map[string]string{}
		for _, task := range w.tasks(service) {
			if task.State == orchestrate.Ready && task.Stopping == "" {
				all[task.ID] = task.Node
			}
		}
		return all
	}
	// local holds a port to leading to a node's own tasks with the clients' own
	// addresses, and to being refused on all other nodes.
	local := func(want int) (serving []string) {
		t.Helper()
		tasks := places("door")
		for _, node := range tasks {
			serving = append(serving, node)
		}
		if slices.Sort(serving); len(serving) != want {
			t.Fatalf("door is on %v, want %d nodes", serving, want)
		}
		for _, node := range w.nodes {
			h := w.Host(node)
			for at, own := range map[netip.Addr]netip.Addr{h.IPv4: w.IPv4, h.IPv6: w.IPv6} {
				if !slices.Contains(serving, node) {
					var err error
					w.until(10*time.Second, node+" refuses", func() bool {
						_, _, err = w.from(at, 18082)
						return errors.Is(err, syscall.ECONNREFUSED)
					})
					continue
				}
				w.until(10*time.Second, node+" answers", func() bool { _, _, err := w.from(at, 18082); return err == nil })
				for range 4 {
					task, client, err := w.from(at, 18082)
					if err != nil || tasks[task] != node || client != own {
						t.Errorf("%s at %v: %s on %q saw %v, %v; want its own task to see %v", node, at, task, tasks[task], client, err, own)
					}
				}
			}
		}
		return serving
	}
	first := local(1)
	s.Replicas = 2
	w.up(s)
	if both := local(2); !slices.Contains(both, first[0]) {
		t.Errorf("door is on %v after it was on %v", both, first)
	}
	s.Replicas = 1
	w.up(s)
	w.until(20*time.Second, "one task is left", func() bool { return len(w.tasks("door")) == 1 })
	local(1)

	// A port of all nodes leads to all tasks. One on the node that was asked sees the
	// client, and others that node.
	tasks := places("web")
	for _, node := range w.nodes {
		h := w.Host(node)
		for at, own := range map[netip.Addr]netip.Addr{h.IPv4: w.IPv4, h.IPv6: w.IPv6} {
			seen := map[string]bool{}
			w.until(10*time.Second, node+" leads to all tasks", func() bool {
				task, client, err := w.from(at, 18080)
				switch on := tasks[task]; {
				case err != nil:
					return false
				case on == node && client != own:
					t.Errorf("%s at %v: its own task saw %v, want %v", node, at, client, own)
				case on != node && !w.owns(node, client):
					t.Errorf("%s at %v: the task on %s saw %v, want an address of %s", node, at, on, client, node)
				}
				seen[task] = true
				return len(seen) == len(tasks)
			})
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.fleet.Remove(ctx, "door"); err != nil {
		t.Error(err)
	}
}

// testExpel expels a node that runs, and lets it join anew.
func (w *world) testExpel(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var task orchestrate.Task
	for _, candidate := range w.tasks("web") {
		if candidate.Node == "n2" {
			task = candidate
		}
	}
	if task.ID == "" {
		t.Fatal("no task of web is on n2")
	}
	pid := w.containers()["n2"][task.ID]
	if pid == 0 {
		t.Fatalf("no process of %s is on n2", task.ID)
	}
	// What somebody may have copied of it.
	stolen := filepath.Join(t.TempDir(), "identity")
	if err := os.CopyFS(stolen, os.DirFS(filepath.Join(w.Host("n2").Dir, "state", "identity"))); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := w.control.Expel(ctx, "n2"); err != nil {
		t.Fatal(err)
	}
	t.Logf("Expel of a node that runs took %v", time.Since(began).Round(10*time.Millisecond))

	old, err := identity.Open(stolen)
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Renew(ctx); !errors.Is(err, identity.ErrUnknown) && !errors.Is(err, identity.ErrRevoked) {
		t.Errorf("renewal with the old certificate: got %v, want ErrUnknown or ErrRevoked", err)
	}
	s, err := etcd.Open(etcd.Options{
		Endpoints: []string{"https://" + netip.AddrPortFrom(w.IPv4, cluster.DefaultPorts.Store).String()},
		TLS:       old.Client(identity.Is(identity.Control)), Timeout: 5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(ctx, record.Key(record.Tasks, "n2", "")); !errors.Is(err, etcd.ErrDenied) && !errors.Is(err, etcd.ErrUnauthenticated) {
		t.Errorf("the old certificate reads the node's tasks: got %v, want ErrDenied or ErrUnauthenticated", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, prefix := range []string{record.Key(record.Alive, "n2"), record.Key(record.Nodes, "n2"), record.Key(record.Endpoints, "n2", ""), record.Key(record.Statuses, "n2", "")} {
		if left, err := w.control.Store().List(ctx, prefix); err != nil || len(left.Items) > 0 {
			t.Errorf("the store has %d records under %s, %v; want none", len(left.Items), prefix, err)
		}
	}
	w.until(30*time.Second, "its task is replaced", func() bool {
		nodes := w.serving("web")
		return len(nodes) == 3 && !slices.Contains(nodes, "n2")
	})
	// Whether it runs on or not, nobody's traffic gets there.
	for _, node := range []string{"n1", "n3"} {
		var ids []string
		for _, task := range w.tasks("web") {
			ids = append(ids, task.ID)
		}
		w.answers(10*time.Second, node, 18080, ids)
		for _, address := range slices.Concat(slices.Collect(maps.Values(task.Addresses))...) {
			try, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			conn, err := w.Host(node).Dial(try, "tcp", netip.AddrPortFrom(address, 8080).String())
			cancel()
			if err == nil {
				conn.Close()
				t.Errorf("%s reaches the task on n2 at %v still", node, address)
			}
		}
	}
	says := func(what string) {
		t.Helper()
		w.until(20*time.Second, "n2 says "+what, func() bool { return strings.Contains(w.process("n2").Output(1<<20), what) })
	}
	says("ended: ")

	// Started again it is not let in, with what it has.
	if err := w.process("n2").Kill(); err != nil {
		t.Fatal(err)
	}
	w.start("n2")
	says(identity.ErrTokenUsed.Error())
	<-w.process("n2").Done()

	token, err := w.control.NewToken(ctx, "n2")
	if err == nil {
		err = handToken(w.shared(""), "n2", token)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.start("n2")
	w.until(30*time.Second, "n2 is a node again", func() bool { return w.alive("n2") })
	w.until(30*time.Second, "what ran on it has ended", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
	w.spread("web")
	w.until(30*time.Second, "a task on each node", func() bool {
		nodes := w.serving("web")
		slices.Sort(nodes)
		return slices.Equal(nodes, w.nodes) && len(w.tasks("web")) == 3
	})
	var ids []string
	for _, task := range w.tasks("web") {
		ids = append(ids, task.ID)
	}
	for _, n := range w.nodes {
		w.answers(20*time.Second, n, 18080, ids)
	}
}

// testDestroy clears three machines: one in good standing, one that reaches no
// control plane, and one that was expelled.
func (w *world) testDestroy(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	destroy := func(node string) {
		t.Helper()
		p, pids, state := w.process(node), w.containers()[node], w.states()[node]
		if len(pids) == 0 || state == "" {
			t.Errorf("%s has containers %v and the state folder %q, want some", node, pids, state)
		}
		kinds := map[string]bool{}
		for _, has := range w.look(node).Since(w.pristine[node]) {
			if kind, what, _ := strings.Cut(has, ": "); w.belongs(node, state, kind, what) {
				kinds[kind] = true
			}
		}
		for _, kind := range []string{"interface", "nftables table", "mount", "cgroup", "process", "path"} {
			if !kinds[kind] {
				t.Errorf("%s has no %s before it is destroyed: is it looked for?", node, kind)
			}
		}
		began := time.Now()
		if err := p.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.Done():
		case <-ctx.Done():
			t.Fatalf("%s: not destroyed", node)
		}
		if err := p.Wait(); err != nil || !strings.Contains(p.Output(1<<20), "destroyed\n") {
			t.Errorf("Destroy of %s: %v\n%s", node, err, p.Output(2000))
		}
		t.Logf("Destroy of %s took %v", node, time.Since(began).Round(10*time.Millisecond))
		w.nothingOn(node, state)
		for task, pid := range pids {
			if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
				t.Errorf("the container of %s on %s: %v, want no such process", task, node, err)
			}
		}
	}
	destroy("n1")

	if err := w.Host("n2").Cut(); err != nil {
		t.Fatal(err)
	}
	destroy("n2")
	if err := w.Host("n2").Heal(); err != nil {
		t.Fatal(err)
	}

	if err := w.control.Expel(ctx, "n3"); err != nil {
		t.Fatal(err)
	}
	w.until(20*time.Second, "n3 has ended", func() bool { return strings.Contains(w.process("n3").Output(1<<20), "ended: ") })
	destroy("n3")

	for _, node := range []string{"n1", "n2", "n2"} { // again is no error
		if err := w.control.Expel(ctx, node); err != nil {
			t.Error(err)
		}
	}
	if nodes, err := w.fleet.Nodes(ctx); err != nil || len(nodes) > 0 {
		t.Errorf("the fleet has %d nodes, %v; want none", len(nodes), err)
	}
	for _, prefix := range []string{"/overlay/slices/", "/identity/members/node:"} {
		if left, err := w.control.Store().List(ctx, prefix); err != nil || len(left.Items) > 0 {
			t.Errorf("the store has %d records under %s, %v; want none", len(left.Items), prefix, err)
		}
	}
	// Nothing of it keeps a machine from beginning anew.
	token, err := w.control.NewToken(ctx, "n1")
	if err == nil {
		err = handToken(w.shared(""), "n1", token)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.start("n1")
	w.until(30*time.Second, "n1 is a node again", func() bool { return w.alive("n1") })
	w.until(30*time.Second, "all tasks are there", func() bool { return len(w.serving("web")) == 3 })
}

// testRestore loses the state of the fleet, and restores a snapshot of it. What ran
// then runs on, untouched, and what came later ends.
func (w *world) testRestore(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	before := w.containers()["n1"]
	if len(before) != 3 {
		t.Fatalf("n1 runs %v, want three tasks", before)
	}
	path := filepath.Join(t.TempDir(), "snapshot")
	file, err := os.Create(path)
	if err == nil {
		_, err = w.control.Etcd().Snapshot(ctx, file)
	}
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	late := w.web(1, 18083)
	late.Name = "late"
	w.up(late)
	if err := w.control.Close(); err != nil {
		t.Fatal(err)
	}

	opts, lost := w.controlOptions(), filepath.Join(w.Dir(), "a")
	var wrong *embed.OptionError
	if err := cluster.Restore(ctx, lost, path, opts); !errors.As(err, &wrong) || wrong.Option != "Dir" {
		t.Errorf("Restore over a control plane: got %v, want an OptionError of Dir", err)
	}
	fresh := filepath.Join(w.Dir(), "restored")
	none := w.shared(fileCert)
	if err := cluster.Restore(ctx, fresh, none, opts); !errors.Is(err, embed.ErrSnapshot) {
		t.Errorf("Restore of what is no snapshot: got %v, want ErrSnapshot", err)
	}
	if err := cluster.Restore(ctx, fresh, path, opts); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(lost); err != nil {
		t.Fatal(err)
	}
	w.openControl(fresh, opts)
	w.until(30*time.Second, "n1 is a node again", func() bool { return w.alive("n1") })
	w.until(30*time.Second, "what came after the snapshot has ended", func() bool { return len(w.containers()["n1"]) == 3 })
	if now := w.containers()["n1"]; !maps.Equal(now, before) {
		t.Errorf("n1 runs %v, want the processes that it ran, %v", now, before)
	}
	if _, err := w.fleet.Get(ctx, "late"); !errors.Is(err, orchestrate.ErrNotFound) {
		t.Errorf("the service that came after the snapshot: %v, want ErrNotFound", err)
	}
	w.up(w.web(4, 18080))
}

// alive reports whether the fleet sees a node.
func (w *world) alive(node string) bool {
	ctx, cancel := context.WithTimeout(w.Context(), 5*time.Second)
	defer cancel()
	nodes, err := w.fleet.Nodes(ctx)
	return err == nil && slices.ContainsFunc(nodes, func(n orchestrate.Node) bool { return n.ID == node && n.Alive })
}
