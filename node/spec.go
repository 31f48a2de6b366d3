package node

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/volume"
)

// runtimeSpec turns a container of a template into what the runtime starts.
func (m *member) runtimeSpec(ctx context.Context, env environment, id string, attempt int) (runtime.Spec, error) {
	t, c := m.task, &m.spec
	labels := maps.Clone(c.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, map[string]string{
		runtime.LabelTask:      t.rec.ID,
		runtime.LabelContainer: c.Name,
		runtime.LabelHash:      t.rec.Hash,
		runtime.LabelAttempt:   strconv.Itoa(attempt),
		runtime.LabelNamespace: t.rec.Namespace,
		runtime.LabelService:   t.rec.Service,
	})
	if t.rec.Fenced() && t.agent.tenure.holds() {
		labels[runtime.LabelHeld] = strconv.FormatInt(t.rec.Epoch, 10)
	}
	hostname := t.hostname()
	if t.tmpl.HostNetwork {
		hostname = t.tmpl.Hostname // the node's own, unless it is asked for
	}
	mounts, err := m.mounts(ctx, env)
	if err != nil {
		return runtime.Spec{}, failed(record.FailedVolume, err, true)
	}
	var vars []string
	for _, k := range slices.Sorted(maps.Keys(c.Env)) {
		vars = append(vars, k+"="+c.Env[k])
	}
	if job := t.rec.Job; job != nil { // the last of a name counts
		vars = append(vars, orchestrate.EnvAttempt+"="+strconv.Itoa(job.Attempt), orchestrate.EnvIndex+"="+strconv.Itoa(t.rec.Slot))
	}
	t.mu.Lock()
	r, hash := m.resources()
	t.mu.Unlock()
	labels[runtime.LabelHash] = hash
	return runtime.Spec{
		ID: id, Labels: labels, Image: c.Image,
		Entrypoint: c.Entrypoint, Args: c.Command, Env: vars, Dir: c.Dir, User: c.User,
		Hostname: hostname, NetNS: env.namespace, HostNetwork: t.tmpl.HostNetwork,
		Mounts:    mounts,
		Resources: runtimeResources(r),
		Security:  c.Security, Ulimits: c.Ulimits, Sysctls: c.Sysctls, Devices: c.Devices,
		Group: t.rec.ID, Logs: c.Logs, Terminal: c.Terminal,
	}, nil
}

func (m *member) mounts(ctx context.Context, env environment) ([]runtime.Mount, error) {
	t := m.task
	mounts := []runtime.Mount{
		{Target: "/etc/resolv.conf", Source: env.files.resolv},
		{Target: "/etc/hosts", Source: env.files.hosts},
	}
	for i, mnt := range m.spec.Mounts {
		out := runtime.Mount{Target: mnt.Target, ReadOnly: mnt.ReadOnly}
		switch {
		case mnt.Tmpfs != nil:
			out.Type, out.Size, out.Mode = "tmpfs", mnt.Tmpfs.Size, mnt.Tmpfs.Mode
		case mnt.Volume != "":
			out.Source = env.volumes[mnt.Volume]
		default:
			binds := t.agent.opts.Binds
			if binds == nil {
				return nil, fmt.Errorf("mounts[%d]: this node allows no bind mounts", i)
			}
			b := volume.Bind{Source: mnt.Bind, Task: t.rec.ID, ReadOnly: mnt.ReadOnly}
			t.hold(func(h *holdings) {
				if !slices.Contains(h.binds, b) {
					h.binds = append(h.binds, b)
				}
			})
			path, err := binds.Bind(ctx, b)
			if err != nil {
				return nil, fmt.Errorf("mounts[%d]: %w", i, err)
			}
			out.Source = path
		}
		mounts = append(mounts, out)
	}
	return mounts, nil
}

// hostname is the task's in its containers, unless it has the node's network.
func (t *task) hostname() string {
	switch {
	case t.tmpl.Hostname != "":
		return t.tmpl.Hostname
	case t.rec.Fenced():
		return record.SlotName(t.rec.Service, t.rec.Slot)
	}
	return t.rec.ID
}

// files are the small files that every container of a task gets.
type files struct{ resolv, hosts string }

// fileless reports whether the containers of a runtime have no files.
func fileless(r runtime.Runtime) bool {
	_, ok := r.(runtime.Fileless)
	return ok
}

func (a *Agent) filesDir(task string) string { return filepath.Join(a.opts.Dir, "tasks", task) }

// writeFiles writes the task's resolv.conf and hosts. They are written in
// place: containers that run have them mounted.
func (t *task) writeFiles() (files, error) {
	if fileless(t.agent.opts.Runtime) {
		return files{resolv: "/resolv.conf", hosts: "/hosts"}, nil
	}
	dir := t.agent.filesDir(t.rec.ID)
	f := files{resolv: filepath.Join(dir, "resolv.conf"), hosts: filepath.Join(dir, "hosts")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return f, err
	}
	resolv, err := t.resolvConf()
	if err != nil {
		return f, err
	}
	if err := os.WriteFile(f.resolv, []byte(resolv), 0o644); err != nil {
		return f, err
	}
	return f, os.WriteFile(f.hosts, []byte(t.hostsFile()), 0o644)
}

// resolvConf is the task's resolv.conf(5): the networks' own servers, or the
// spec's, or the node's.
func (t *task) resolvConf() (string, error) {
	d := t.tmpl.DNS
	servers, search := d.Servers, d.Search
	if len(servers) == 0 && t.agent.opts.Resolver != nil && !t.tmpl.HostNetwork {
		for _, n := range t.tmpl.Networks {
			for _, gw := range t.agent.nets.gateways(n) {
				servers = append(servers, gw.String())
			}
		}
		if s, ok := t.agent.opts.Resolver.(Searcher); ok && len(servers) > 0 && len(search) == 0 {
			search = s.Search(t.rec.Namespace)
		}
	}
	if len(servers) == 0 {
		data, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		if len(search) == 0 && len(d.Options) == 0 {
			return string(data), nil
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
				servers = append(servers, f[1])
			}
		}
	}
	var b strings.Builder
	for _, s := range servers[:min(len(servers), 3)] { // MAXNS of resolv.conf(5)
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(search) == 0 && len(d.Servers) > 0 {
		// Else resolvers search the domain that they see in the hostname.
		search = []string{"."}
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return b.String(), nil
}

func (t *task) hostsFile() string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	hostname := t.hostname()
	if t.rec.Fenced() {
		hostname = fmt.Sprintf("%s.%s %s", hostname, t.rec.Service, hostname)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.tmpl.Networks[:min(len(t.tmpl.Networks), 1)] {
		for _, a := range t.status.Addresses[n] {
			fmt.Fprintf(&b, "%s\t%s\n", a, hostname)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.tmpl.DNS.Hosts)) {
		for _, a := range t.tmpl.DNS.Hosts[name] {
			fmt.Fprintf(&b, "%s\t%s\n", a, name)
		}
	}
	return b.String()
}
