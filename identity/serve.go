package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// What a machine and a registrar say to each other: JSON over HTTPS.
const (
	pathJoin  = "/v1/join"
	pathRenew = "/v1/renew"

	maxBody = 64 << 10
)

type joinBody struct {
	Token  string `json:"token"`
	Secret string `json:"secret"`
	ID     ID     `json:"id"`
	CSR    []byte `json:"csr"` // DER (RFC 2986)
}

type renewBody struct {
	CSR []byte `json:"csr"`
}

type grantBody struct {
	Chain string `json:"chain"` // PEM
	Roots string `json:"roots"`
}

type errorBody struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// errorCodes are the conditions that travel.
var errorCodes = map[string]error{
	"token": ErrToken, "token-expired": ErrTokenExpired, "token-used": ErrTokenUsed, "name-in-use": ErrNameInUse,
	"revoked": ErrRevoked, "unknown": ErrUnknown, "no-certificate": ErrNoCertificate, "authority": ErrAuthority, "expired": ErrExpired,
}

// RemoteError is a registrar's refusal. It matches the condition that it is of,
// such as [ErrTokenUsed].
type RemoteError struct {
	Status  int
	Message string
	kind    error
}

func (e *RemoteError) Error() string { return "the registrar answers: " + e.Message }

// Unwrap returns the condition, if it is a known one.
func (e *RemoteError) Unwrap() error { return e.kind }

// Serve answers machines on a listener until ctx ends, and returns nil then. The
// listener must not be TLS already; Serve closes it.
func (r *Registrar) Serve(ctx context.Context, l net.Listener) error {
	own, err := r.opts.Keyring.Member(ID{Control, "registrar"}, r.opts.Hosts, r.opts.TTL)
	if err != nil {
		l.Close()
		return err
	}
	own.now = r.opts.now
	if err := own.Renew(ctx); err != nil {
		l.Close()
		return err
	}
	config := own.Server(func(ID) error { return nil })
	config.ClientAuth = tls.RequestClientCert // who joins has none
	config.VerifyConnection = nil             // done for those who renew
	server := &http.Server{
		Handler: r.handler(own), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 2)
	running, cancel := context.WithCancel(ctx)
	go func() { ended <- own.Run(running) }()
	go func() { ended <- server.Serve(tls.NewListener(l, config)) }()
	select {
	case <-ctx.Done():
	case err = <-ended:
		ended <- err
	}
	cancel()
	closing, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	if server.Shutdown(closing) != nil {
		_ = server.Close() // calls that would not end
	}
	for range 2 {
		if e := <-ended; e != nil && !errors.Is(e, http.ErrServerClosed) && ctx.Err() == nil {
			err = e
		}
	}
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (r *Registrar) handler(own *Member) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathJoin, func(w http.ResponseWriter, req *http.Request) {
		var body joinBody
		csr, err := decodeBody(req, &body, func() []byte { return body.CSR })
		if err == nil {
			err = body.ID.Validate()
		}
		if err != nil {
			r.answer(w, req, grant{}, &requestError{err})
			return
		}
		g, err := r.join(req.Context(), body.ID, body.Token, body.Secret, csr)
		r.log.Info("join", "member", body.ID.String(), "from", req.RemoteAddr, "error", err)
		r.answer(w, req, g, err)
	})
	mux.HandleFunc("POST "+pathRenew, func(w http.ResponseWriter, req *http.Request) {
		var body renewBody
		csr, err := decodeBody(req, &body, func() []byte { return body.CSR })
		if err != nil {
			r.answer(w, req, grant{}, &requestError{err})
			return
		}
		_, roots := r.opts.Keyring.state()
		if err := verify(req.TLS.PeerCertificates, roots, x509.ExtKeyUsageClientAuth, own.now()); err != nil {
			r.answer(w, req, grant{}, err)
			return
		}
		g, err := r.renew(req.Context(), req.TLS.PeerCertificates[0], csr)
		r.answer(w, req, g, err)
	})
	return mux
}

// requestError is a request that is no such.
type requestError struct{ error }

func decodeBody(req *http.Request, into any, csr func() []byte) (*x509.CertificateRequest, error) {
	data, err := io.ReadAll(io.LimitReader(req.Body, maxBody))
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificateRequest(csr())
	if err == nil {
		err = parsed.CheckSignature() // it has the key
	}
	return parsed, err
}

func (r *Registrar) answer(w http.ResponseWriter, req *http.Request, g grant, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err == nil {
		_ = json.NewEncoder(w).Encode(grantBody{Chain: string(marshalCerts(g.chain...)), Roots: string(marshalCerts(g.roots...))})
		return
	}
	body, status := errorBody{Message: err.Error()}, http.StatusInternalServerError
	var bad *requestError
	if errors.As(err, &bad) {
		status = http.StatusBadRequest
	}
	for code, kind := range errorCodes {
		if errors.Is(err, kind) {
			body.Code, status = code, http.StatusForbidden
		}
	}
	if status == http.StatusInternalServerError {
		r.log.Error("cannot answer", "path", req.URL.Path, "error", err)
		body.Message = "it cannot answer now; try again" // what failed is the operator's to know
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// askTimeout is how long one of several registrars may take to answer.
const askTimeout = 10 * time.Second

// ask asks registrars in turn until one answers, be it with a refusal. One that
// did what it was asked, and whose answer was lost, is no harm: the same key may
// ask another.
func ask(ctx context.Context, addresses []string, path string, config *tls.Config, body any) (grant, error) {
	var errs []error
	for i, address := range addresses {
		trying, cancel := ctx, context.CancelFunc(func() {})
		if i < len(addresses)-1 {
			trying, cancel = context.WithTimeout(ctx, askTimeout)
		}
		g, err := post(trying, address, path, config, body)
		cancel()
		var refusal *RemoteError
		if err == nil || ctx.Err() != nil || errors.As(err, &refusal) && refusal.Status < http.StatusInternalServerError {
			return g, err
		}
		errs = append(errs, err)
	}
	return grant{}, errors.Join(errs...)
}

// post asks a registrar.
func post(ctx context.Context, address, path string, config *tls.Config, body any) (grant, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return grant{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+path, bytes.NewReader(data))
	if err != nil {
		return grant{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, TLSHandshakeTimeout: 10 * time.Second}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return grant{}, err
	}
	defer resp.Body.Close()
	data, err = io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return grant{}, err
	}
	if resp.StatusCode != http.StatusOK {
		var e errorBody
		if json.Unmarshal(data, &e) != nil || e.Message == "" {
			e.Message = resp.Status
		}
		return grant{}, &RemoteError{Status: resp.StatusCode, Message: e.Message, kind: errorCodes[e.Code]}
	}
	var answer grantBody
	if err := json.Unmarshal(data, &answer); err != nil {
		return grant{}, fmt.Errorf("read the registrar's answer: %w", err)
	}
	chain, err := parseCerts([]byte(answer.Chain))
	if err != nil {
		return grant{}, err
	}
	roots, err := parseCerts([]byte(answer.Roots))
	if err == nil && (len(chain) == 0 || len(roots) == 0) {
		err = errors.New("the registrar's answer has no certificate")
	}
	return grant{chain, roots}, err
}
