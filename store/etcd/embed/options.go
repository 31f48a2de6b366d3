package embed

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	server "go.etcd.io/etcd/server/v3/embed"

	"github.com/orchestrate-go/orchestrate/store/etcd"
)

// MaxMembers is the most that a cluster is started with. More members make
// every commit slower and bear no loss that is worth it.
const MaxMembers = 5

// TLS is files in PEM. All three are needed: each side shows a certificate, and
// it must be of the CA.
type TLS struct {
	Cert string // with the host of the URL as a name; for servers and for clients
	Key  string
	CA   string
}

func (t TLS) info() transport.TLSInfo {
	if t == (TLS{}) {
		return transport.TLSInfo{}
	}
	return transport.TLSInfo{CertFile: t.Cert, KeyFile: t.Key, TrustedCAFile: t.CA, ClientCertAuth: true}
}

// Options of a member. Name, Dir, PeerURL and ClientURL must be given.
type Options struct {
	// Name is the member's among the others of its cluster.
	Name string
	// Dir is the member's folder, which is made if it is missing. A member that
	// was started in it before goes on as that, and Members and Join are not
	// looked at.
	Dir string
	// PeerURL is where the other members reach this one, and ClientURL where
	// stores do: "https://10.0.0.1:2380", or "http://127.0.0.1:2380" or, of
	// ClientURL, "unix:///run/myapp/etcd.sock", without TLS. Port 0 is any free
	// port; a PeerURL with it fits a cluster of one only.
	PeerURL, ClientURL string
	// PeerListen and ClientListen are what the member listens on, "IP:PORT", if
	// that is not the host and port of its URLs.
	PeerListen, ClientListen string
	// PeerTLS and ClientTLS are for URLs with https. Both may be the same.
	PeerTLS, ClientTLS TLS

	// Members are the name and PeerURL of each member of a new cluster, this
	// one too, the same at each. Empty: this one alone.
	Members map[string]string
	// Cluster names the cluster, so that members of two never mix. Default
	// "orchestrate".
	Cluster string
	// Join is for a member that is added to a cluster that runs; see
	// [Member.Invite] and [Member.Replace].
	Join *Invitation

	// History is for how long old revisions are kept: what a watch may be away
	// for without having to list again. Default 10 minutes.
	History time.Duration
	// Quota is how large the database may grow, in bytes. Default 2 GiB; more
	// than 8 GiB is not advised.
	Quota int64
	// Heartbeat and Election are the leader's beat and how long it may be
	// silent: about the round trip between members, and ten times that. Election
	// also bounds leases from below, at one and a half of it. Default 100 ms
	// and 1 s.
	Heartbeat, Election time.Duration
	// Logger gets what etcd says; nil logs nothing.
	Logger *slog.Logger
}

// OptionError is an option that is missing or wrong.
type OptionError struct{ Option, Reason string }

// Error names the option and what would be right.
func (e *OptionError) Error() string { return fmt.Sprintf("embed: option %s %s", e.Option, e.Reason) }

func (o Options) withDefaults() Options {
	o.Cluster = cmp.Or(o.Cluster, "orchestrate")
	o.History = cmp.Or(o.History, 10*time.Minute)
	o.Quota = cmp.Or(o.Quota, 2<<30)
	o.Heartbeat = cmp.Or(o.Heartbeat, 100*time.Millisecond)
	o.Election = cmp.Or(o.Election, 10*o.Heartbeat)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// config is what etcd takes, and the errors that it would find too late, or not
// at all.
func (o Options) config() (*server.Config, error) {
	switch {
	case o.Name == "" || strings.ContainsAny(o.Name, "=,"):
		return nil, &OptionError{"Name", fmt.Sprintf("is %q; want a name without = and comma", o.Name)}
	case o.Dir == "":
		return nil, &OptionError{"Dir", "is missing"}
	case len(o.Members) > MaxMembers:
		return nil, &OptionError{"Members", fmt.Sprintf("has %d members; want 1 to %d", len(o.Members), MaxMembers)}
	case o.Join != nil && len(o.Members) > 0:
		return nil, &OptionError{"Join", "and Members exclude each other; a new cluster has Members"}
	case o.History < time.Second:
		return nil, &OptionError{"History", fmt.Sprintf("is %v; want 1s or more", o.History)}
	case o.Quota < 0:
		return nil, &OptionError{"Quota", fmt.Sprintf("is %d; want more than 0", o.Quota)}
	case o.Heartbeat < time.Millisecond:
		return nil, &OptionError{"Heartbeat", fmt.Sprintf("is %v; want 1ms or more", o.Heartbeat)}
	case o.Election < 5*o.Heartbeat || o.Election > 50*time.Second:
		return nil, &OptionError{"Election", fmt.Sprintf("is %v; want five heartbeats (%v) to 50s", o.Election, 5*o.Heartbeat)}
	}
	c := server.NewConfig()
	peer, peerListen, err := endpoint("PeerURL", o.PeerURL, "PeerListen", o.PeerListen, o.PeerTLS)
	if err != nil {
		return nil, err
	}
	client, clientListen, err := endpoint("ClientURL", o.ClientURL, "ClientListen", o.ClientListen, o.ClientTLS)
	if err != nil {
		return nil, err
	}
	c.Name, c.Dir = o.Name, filepath.Clean(o.Dir)
	c.AdvertisePeerUrls, c.ListenPeerUrls = []url.URL{peer}, []url.URL{peerListen}
	c.AdvertiseClientUrls, c.ListenClientUrls = []url.URL{client}, []url.URL{clientListen}
	c.PeerTLSInfo, c.ClientTLSInfo = o.PeerTLS.info(), o.ClientTLS.info()
	members := o.Members
	if o.Join != nil {
		members, c.ClusterState = o.Join.Members, server.ClusterStateFlagExisting
	}
	if len(members) == 0 {
		members = map[string]string{o.Name: peer.String()}
	}
	if members[o.Name] != peer.String() {
		return nil, &OptionError{"Members", fmt.Sprintf("has %q for %s; want its PeerURL, %q", members[o.Name], o.Name, peer.String())}
	}
	c.InitialCluster, err = initialCluster(members)
	if err != nil {
		return nil, err
	}
	c.InitialClusterToken = o.Cluster
	c.AutoCompactionMode, c.AutoCompactionRetention = server.CompactorModePeriodic, o.History.String()
	c.QuotaBackendBytes = o.Quota
	c.TickMs, c.ElectionMs = uint(o.Heartbeat.Milliseconds()), uint(o.Election.Milliseconds())
	// An idle watch learns often enough how far it is, so that it need not list
	// again when it has to connect again.
	c.WatchProgressNotifyInterval = max(o.History/10, 100*time.Millisecond)
	// What nobody asked for: a second API over HTTP.
	c.EnableGRPCGateway = false
	c.EnablePprof = false
	return c, nil
}

// initialCluster is members as etcd wants them written.
func initialCluster(members map[string]string) (string, error) {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if name == "" || strings.ContainsAny(name, "=,") || strings.ContainsAny(members[name], ", ") {
			return "", &OptionError{"Members", fmt.Sprintf("has %q: %q; want a name and one URL", name, members[name])}
		}
		list = append(list, name+"="+members[name])
	}
	return strings.Join(list, ","), nil
}

// endpoint checks a URL and where it is listened on, and that nothing listens
// without TLS that others could reach.
func endpoint(option, text, listenOption, listen string, certs TLS) (advertised, bound url.URL, err error) {
	u, err := url.Parse(text)
	if err != nil {
		return url.URL{}, url.URL{}, &OptionError{option, fmt.Sprintf("is no URL: %v", err)}
	}
	if u.Scheme == "unix" && option == "ClientURL" {
		if u.Host != "" || u.Path == "" || listen != "" {
			return url.URL{}, url.URL{}, &OptionError{option, fmt.Sprintf("is %q; want unix:///PATH, and no %s", text, listenOption)}
		}
		return *u, *u, nil
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" {
		return url.URL{}, url.URL{}, &OptionError{option, fmt.Sprintf("is %q; want https://HOST:PORT", text)}
	}
	u.Path = ""
	at := url.URL{Scheme: u.Scheme, Host: cmp.Or(listen, u.Host)}
	host, port, err := net.SplitHostPort(at.Host)
	if err != nil {
		return url.URL{}, url.URL{}, &OptionError{listenOption, fmt.Sprintf("is %q; want IP:PORT", at.Host)}
	}
	if host != "localhost" && net.ParseIP(host) == nil {
		return url.URL{}, url.URL{}, &OptionError{listenOption, fmt.Sprintf("is %q; want IP:PORT, since one cannot listen on a name", at.Host)}
	}
	tlsOption := strings.TrimSuffix(option, "URL") + "TLS"
	switch {
	case u.Scheme == "http" && (!etcd.Loopback(host) || !etcd.Loopback(u.Hostname())):
		return url.URL{}, url.URL{}, &OptionError{option, fmt.Sprintf("is %q on %s; want https: without TLS only on loopback", text, at.Host)}
	case u.Scheme == "https" && (certs.Cert == "" || certs.Key == "" || certs.CA == ""):
		return url.URL{}, url.URL{}, &OptionError{tlsOption, "lacks a file; want Cert, Key and CA for https"}
	case u.Scheme == "http" && certs != (TLS{}):
		return url.URL{}, url.URL{}, &OptionError{tlsOption, fmt.Sprintf("is given, but %s is %q; want https", option, text)}
	}
	for _, file := range []string{certs.Cert, certs.Key, certs.CA} {
		if _, err := os.Stat(file); file != "" && err != nil {
			return url.URL{}, url.URL{}, &OptionError{tlsOption, err.Error()}
		}
	}
	if port == "0" {
		free, err := freePort(host)
		if err != nil {
			return url.URL{}, url.URL{}, &OptionError{option, err.Error()}
		}
		at.Host = net.JoinHostPort(host, free)
	}
	if u.Port() == "0" {
		u.Host = net.JoinHostPort(u.Hostname(), at.Port())
	}
	return *u, at, nil
}

// freePort is one that nobody listened on a moment ago. etcd has to be told its
// port before it listens.
func freePort(host string) (string, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}
