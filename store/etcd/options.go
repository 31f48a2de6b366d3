package etcd

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

// maxPrefix is the longest Prefix: with it the largest transaction still fits
// etcd's default --max-request-bytes.
const maxPrefix = 128

// Options of a store. Endpoints must be given.
type Options struct {
	// Endpoints are the client URLs of the servers, best all of them:
	// "https://10.0.0.1:2379" or "unix:///run/etcd.sock". Plain "http://" is
	// taken for loopback addresses only.
	Endpoints []string
	// Near is one of the Endpoints that is asked before the others: that of a
	// server in this process or on this machine, which no fault of the network
	// parts from it. The others are asked when it does not serve, and for a
	// while after it has let a call fail. Empty: all are asked in turn.
	Near string
	// TLS has the CA that the servers' certificates must be of and, where etcd
	// asks for one, the client's certificate. Nil: the system's CAs and no
	// certificate.
	TLS *tls.Config
	// Username and Password authenticate where etcd's access control is on and
	// goes by passwords. By certificates, leave them empty: the certificate's
	// common name is the user.
	Username, Password string
	// Prefix is put before each key, so that several fleets, and others, can
	// share one etcd. It is a key of at most 128 bytes (see
	// store.ValidateKey), or "/" for none. Default "/orchestrate".
	Prefix string
	// Timeout is how long a call tries to reach the servers; its context may
	// end it sooner. Default 10 s.
	Timeout time.Duration
	// Refused, when not nil, is told when etcd's access control has refused a
	// call or a watch, [ErrDenied] or [ErrUnauthenticated], as after the member
	// was revoked. It must not block.
	Refused func()
	// Logger gets what the client says; nil logs nothing.
	Logger *slog.Logger
}

func (o Options) withDefaults() (Options, error) {
	o.Prefix = cmp.Or(o.Prefix, "/orchestrate")
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Refused == nil {
		o.Refused = func() {}
	}
	if len(o.Endpoints) == 0 {
		return o, &OptionError{"Endpoints", "is empty; want the client URLs of the servers, such as https://10.0.0.1:2379"}
	}
	first := ""
	for i, endpoint := range o.Endpoints {
		option := fmt.Sprintf("Endpoints[%d]", i)
		secure, err := checkEndpoint(option, endpoint)
		if err != nil {
			return o, err
		}
		kind := "without TLS"
		if secure {
			kind = "with TLS"
		}
		// The client takes the first for all of them.
		if first = cmp.Or(first, kind); kind != first {
			return o, &OptionError{option, fmt.Sprintf("is %s and the first is %s; want all alike", kind, first)}
		}
	}
	switch {
	case o.Near != "" && !slices.Contains(o.Endpoints, o.Near):
		return o, &OptionError{"Near", fmt.Sprintf("is %q; want one of Endpoints", o.Near)}
	case o.Near != "" && o.Username != "":
		return o, &OptionError{"Near", "goes with certificates; a password's proof is one for all servers"}
	case (o.Username == "") != (o.Password == ""):
		return o, &OptionError{"Username", "and Password go together; give both or none"}
	case o.Timeout < 0:
		return o, &OptionError{"Timeout", fmt.Sprintf("is %v; want more than 0", o.Timeout)}
	case o.Prefix == "/":
		o.Prefix = ""
	case len(o.Prefix) > maxPrefix:
		return o, &OptionError{"Prefix", fmt.Sprintf("has %d bytes; want at most %d", len(o.Prefix), maxPrefix)}
	default:
		if err := store.ValidateKey(o.Prefix); err != nil {
			return o, &OptionError{"Prefix", err.Error()}
		}
	}
	return o, nil
}

// checkEndpoint reports whether an endpoint is spoken to by TLS.
func checkEndpoint(option, endpoint string) (secure bool, err error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return false, &OptionError{option, fmt.Sprintf("is no URL: %v", err)}
	}
	switch u.Scheme {
	case "unix", "unixs":
		return u.Scheme == "unixs", nil
	case "http", "https":
	default:
		return false, &OptionError{option, fmt.Sprintf("is %q; want https://HOST:PORT or unix:///PATH", endpoint)}
	}
	if u.Port() == "" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" {
		return false, &OptionError{option, fmt.Sprintf("is %q; want a host, a port and no path", endpoint)}
	}
	if u.Scheme == "http" && !Loopback(u.Hostname()) {
		return false, &OptionError{option, fmt.Sprintf("is %q; want https: without TLS only loopback and unix sockets", endpoint)}
	}
	return u.Scheme == "https", nil
}

// Loopback reports whether host is this machine and nothing else: "localhost",
// or an address of the loopback interface.
func Loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
