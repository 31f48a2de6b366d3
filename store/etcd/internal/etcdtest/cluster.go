// Package etcdtest runs a cluster of etcd members as processes of their own, to
// be killed and stopped, with proxies between them and before them, to be cut.
package etcdtest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/store/etcd/embed"
)

// childEnv has the options of a member in JSON, for the test's own program when
// it is to be one.
const childEnv = "ORCHESTRATE_TEST_ETCD_MEMBER"

// Child is for the TestMain of packages that use this one: if the environment
// says that the program is to be a member, it is one until the test ends, and
// ran is true.
func Child() (ran bool, err error) {
	text := os.Getenv(childEnv)
	if text == "" {
		return false, nil
	}
	return true, child(text)
}

// child is a member until its standard input ends, which it does with the test.
func child(text string) error {
	var opts embed.Options
	if err := json.Unmarshal([]byte(text), &opts); err != nil {
		return err
	}
	opts.Logger = Logger()
	m, err := embed.Start(context.Background(), opts)
	if err != nil {
		return err
	}
	infos, err := m.Members(context.Background())
	if err != nil {
		return err
	}
	for _, info := range infos {
		if info.Name == opts.Name {
			fmt.Println("id", info.ID)
		}
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	select {
	case <-gone:
		return nil // without a farewell: the test is over
	case <-m.Done():
		return m.Err()
	}
}

// Logger logs to standard error when ETCD_LOG is set, for those who look into a
// test that failed.
func Logger() *slog.Logger {
	if os.Getenv("ETCD_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Cluster is members that reach each other by proxies. Its methods are for one
// goroutine.
type Cluster struct {
	t       testing.TB
	members []*member
}

type member struct {
	opts    embed.Options
	peers   *Proxy // before its peer port
	clients *Proxy // before its client port
	// What the proxies lead to: where the process listens.
	peerPort, clientPort atomic.Pointer[string]
	id                   string
	process              *exec.Cmd
	input                io.Closer
	exited               chan struct{}
}

// New starts a cluster of n members, each a process of its own. They end with
// the test, however that ends.
func New(t testing.TB, n int) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	dir := scratch(t)
	names := map[string]string{}
	for i := range n {
		name := string(rune('a' + i))
		m := &member{opts: embed.Options{
			Name: name, Dir: filepath.Join(dir, name), Cluster: filepath.Base(dir),
			Members:   names,
			Heartbeat: 50 * time.Millisecond, Election: 500 * time.Millisecond,
		}}
		m.listen(t)
		m.peers = newProxy(t, func() string { return *m.peerPort.Load() }, true)
		m.clients = newProxy(t, func() string { return *m.clientPort.Load() }, false)
		m.opts.PeerURL, m.opts.ClientURL = m.peers.URL(), m.clients.URL()
		names[name] = m.opts.PeerURL
		c.members = append(c.members, m)
	}
	t.Cleanup(func() {
		for i := range c.members {
			c.Kill(i)
		}
	})
	var all sync.WaitGroup
	for i := range c.members {
		all.Go(func() { c.Start(i) }) // one waits for the others
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return c
}

// scratch is a folder in memory, if there is such a place: what is tested is not
// the disk.
func scratch(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "etcdtest-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func freeAddress(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// listen gives the member ports that were free a moment ago.
func (m *member) listen(t testing.TB) {
	m.opts.PeerListen, m.opts.ClientListen = freeAddress(t), freeAddress(t)
	peers, clients := m.opts.PeerListen, m.opts.ClientListen
	m.peerPort.Store(&peers)
	m.clientPort.Store(&clients)
}

// Start starts member i and waits until it serves. Others on the machine may
// take a port before it does, so it tries with others.
func (c *Cluster) Start(i int) {
	m := c.members[i]
	var said string
	for range 5 {
		if said = c.start(m); said == "" {
			return
		}
		if m.exited == nil {
			break // there is no process
		}
		_ = m.process.Process.Kill()
		<-m.exited
		_ = m.input.Close()
		m.exited = nil
		m.listen(c.t)
	}
	c.t.Errorf("member %s does not start: %s", m.opts.Name, said)
}

// start starts the process and returns what it said instead of that it serves.
func (c *Cluster) start(m *member) (said string) {
	text, err := json.Marshal(m.opts)
	if err != nil {
		return err.Error()
	}
	// Two processors for three servers and their clients: more threads of each
	// would only get in each other's way.
	m.process = exec.Command(os.Args[0], "-test.run=^$")
	m.process.Env = append(os.Environ(), childEnv+"="+string(text), "GOMAXPROCS=2")
	m.process.Stderr = os.Stderr
	input, err := m.process.StdinPipe()
	if err != nil {
		return err.Error()
	}
	output, err := m.process.StdoutPipe()
	if err != nil {
		return err.Error()
	}
	if err := m.process.Start(); err != nil {
		return err.Error()
	}
	m.input, m.exited = input, make(chan struct{})
	line, err := bufio.NewReader(output).ReadString('\n')
	id, found := strings.CutPrefix(strings.TrimSpace(line), "id ")
	if found {
		m.id = id
	} else {
		said = fmt.Sprintf("it said %q (%v), want its ID", line, err)
	}
	process, exited := m.process, m.exited
	go func() {
		defer close(exited)
		_, _ = io.Copy(io.Discard, output)
		_ = process.Wait() // it was killed
	}()
	return said
}

// Kill kills member i, if it runs, with no time to do anything.
func (c *Cluster) Kill(i int) {
	m := c.members[i]
	if m.exited == nil {
		return
	}
	_ = m.process.Process.Kill()
	<-m.exited
	_ = m.input.Close()
	m.exited = nil
}

// Runs reports whether member i was started and not killed.
func (c *Cluster) Runs(i int) bool { return c.members[i].exited != nil }

// Len is the number of members.
func (c *Cluster) Len() int { return len(c.members) }

// Endpoints are the client URLs of all members, by their proxies.
func (c *Cluster) Endpoints() []string {
	var urls []string
	for _, m := range c.members {
		urls = append(urls, m.opts.ClientURL)
	}
	return urls
}

// Proxies are further proxies before all members, for one client that is to be
// cut off alone.
func (c *Cluster) Proxies() []*Proxy {
	var proxies []*Proxy
	for _, m := range c.members {
		proxies = append(proxies, newProxy(c.t, func() string { return *m.clientPort.Load() }, false))
	}
	return proxies
}

// CutPair lets members i and j not hear each other.
func (c *Cluster) CutPair(i, j int) {
	c.members[i].peers.Cut(c.members[j].id)
	c.members[j].peers.Cut(c.members[i].id)
}

// CutPeers lets member i neither hear nor be heard by the others, while its
// clients reach it.
func (c *Cluster) CutPeers(i int) {
	c.members[i].peers.Cut("")
	for j := range c.members {
		if j != i {
			c.members[j].peers.Cut(c.members[i].id)
		}
	}
}

// CutClients lets no client reach member i.
func (c *Cluster) CutClients(i int) { c.members[i].clients.Cut("") }

// Heal undoes all cuts.
func (c *Cluster) Heal() {
	for _, m := range c.members {
		m.clients.Heal("")
		m.peers.Heal("")
		for _, other := range c.members {
			m.peers.Heal(other.id)
		}
	}
}
