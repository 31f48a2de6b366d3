// Program is what the containers of package local's tests run. Its arguments
// are done from left to right; it exits with 0 after the last:
//
//	print=TEXT      a line on stdout
//	flood=N         N numbered lines of 100 bytes each on stdout, as fast as it can
//	cat=PATH        a file on stdout
//	bind=ADDRESS    listens on a TCP address for a moment
//	line=TEXT       a line at the end of /data/lines, on disk when it is done
//	sleep=DURATION  wait
//	eat=MIB         that much memory, touched
//	has=TEXT        fails unless /data/lines has that line
//	touch=PATH      makes a file
//	link=TO PATH    makes a symbolic link
//	fill=PATH       writes 4 MiB to a file
//	get=URL         fails unless the answer's status is 200
//	wait            for SIGTERM
//	catch=NUMBER    the signal of that number, from now on
//	await           for a signal that is caught
//	stay            until SIGKILL
//	serve           answer HTTP, and UDP with the hostname, on port 8080 until
//	                SIGTERM, see serve
//	exit=N          exit at once with that code
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	for _, arg := range os.Args[1:] {
		word, value, _ := strings.Cut(arg, "=")
		if err := do(ctx, word, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

var caught = make(chan os.Signal, 1)

func do(ctx context.Context, word, value string) error {
	switch word {
	case "print":
		fmt.Println(value)
	case "flood":
		n, err := strconv.Atoi(value)
		if err != nil {
			return err
		}
		return flood(n)
	case "cat":
		data, err := os.ReadFile(value)
		if err == nil {
			_, err = os.Stdout.Write(data)
		}
		return err
	case "bind":
		l, err := net.Listen("tcp", value)
		if err != nil {
			return err
		}
		return l.Close()
	case "line":
		return appendLine(value)
	case "sleep":
		d, err := time.ParseDuration(value)
		if err != nil {
			return err
		}
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	case "eat":
		n, err := strconv.Atoi(value)
		if err != nil {
			return err
		}
		eat(n)
	case "has":
		data, err := os.ReadFile("/data/lines")
		if err == nil && !slices.Contains(strings.Split(string(data), "\n"), value) {
			err = fmt.Errorf("there is no line %q", value)
		}
		return err
	case "touch":
		return os.WriteFile(value, nil, 0o644)
	case "link":
		to, path, _ := strings.Cut(value, " ")
		return os.Symlink(to, path)
	case "fill":
		return os.WriteFile(value, make([]byte, 4<<20), 0o644)
	case "get":
		resp, err := http.Get(value)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
	case "wait":
		<-ctx.Done()
	case "catch":
		n, err := strconv.Atoi(value)
		if err != nil {
			return err
		}
		signal.Notify(caught, syscall.Signal(n))
	case "await":
		<-caught
	case "stay":
		for {
			time.Sleep(time.Hour)
		}
	case "serve":
		return serve(ctx)
	case "exit":
		n, err := strconv.Atoi(value)
		if err != nil {
			return err
		}
		os.Exit(n)
	default:
		return fmt.Errorf("unknown word %q", word)
	}
	return nil
}

// appendLine returns once the line would survive a crash of the machine.
func appendLine(text string) error {
	file, err := os.OpenFile("/data/lines", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.WriteString(text + "\n"); err != nil {
		return err
	}
	return file.Sync()
}

func flood(n int) error {
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	for i := range n {
		if _, err := fmt.Fprintf(out, "%099d\n", i+1); err != nil {
			return err
		}
	}
	return out.Flush()
}

var eaten [][]byte

func eat(mib int) {
	for range mib {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		eaten = append(eaten, b)
	}
}

// burn uses a processor for that long: its own time, however busy the machine is.
func burn(d time.Duration) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const thread = 1 // RUSAGE_THREAD
	used := func() (time.Duration, error) {
		var u syscall.Rusage
		err := syscall.Getrusage(thread, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
	}
	begin, err := used()
	for now := begin; err == nil && now < begin+d; now, err = used() {
		for range 10_000 {
			_ = os.Getpagesize()
		}
	}
	return err
}

// serve answers
//
//	/                     hostname, a space, and the environment's VERSION
//	/healthy?NAME         200, or 503 when NAME was made sick
//	/sick?NAME            makes NAME sick
//	/well?NAME            makes it well again
//	/append?TEXT          a line at the end of /data/lines
//	/fetch?URL            what is answered there, asked from in here
//	/lookup?NAME          its addresses
//	/print?TEXT           a line on stdout
//	/burn?DURATION        after so much time of a processor
//	/exit?N               ends the process with that code
//
// and with 500 and the reason what went wrong.
func serve(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	var sick [3]atomic.Bool
	kinds := []string{"startup", "readiness", "liveness"}
	// Sick from the start is what SICK names.
	for i, k := range kinds {
		sick[i].Store(strings.Contains(os.Getenv("SICK"), k))
	}
	mux := http.NewServeMux()
	handle := func(path string, answer func(arg string) (string, error)) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			text, err := answer(r.URL.RawQuery)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			fmt.Fprint(w, text)
		})
	}
	handle("/", func(string) (string, error) { return host + " " + os.Getenv("VERSION"), nil })
	mux.HandleFunc("/healthy", func(w http.ResponseWriter, r *http.Request) {
		if i := slices.Index(kinds, r.URL.RawQuery); i >= 0 && sick[i].Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	set := func(value bool) func(string) (string, error) {
		return func(kind string) (string, error) {
			i := slices.Index(kinds, kind)
			if i < 0 {
				return "", fmt.Errorf("unknown kind %q", kind)
			}
			sick[i].Store(value)
			return "", nil
		}
	}
	handle("/sick", set(true))
	handle("/well", set(false))
	handle("/append", func(text string) (string, error) { return host, appendLine(text) })
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	handle("/fetch", func(url string) (string, error) {
		resp, err := client.Get(url)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	})
	handle("/lookup", func(name string) (string, error) {
		addrs, err := net.DefaultResolver.LookupHost(ctx, name)
		slices.Sort(addrs)
		return strings.Join(addrs, " "), err
	})
	handle("/print", func(text string) (string, error) {
		_, err := fmt.Println(text)
		return "", err
	})
	handle("/burn", func(text string) (string, error) {
		d, err := time.ParseDuration(text)
		if err == nil {
			err = burn(d)
		}
		return host, err
	})
	handle("/exit", func(code string) (string, error) {
		n, err := strconv.Atoi(code)
		if err == nil {
			os.Exit(n)
		}
		return "", err
	})
	datagrams, err := net.ListenPacket("udp", ":8080")
	if err != nil {
		return err
	}
	go func() {
		for buf := make([]byte, 1); ; {
			_, from, err := datagrams.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = datagrams.WriteTo([]byte(host), from)
		}
	}()
	server := &http.Server{Addr: ":8080", Handler: mux}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	_ = datagrams.Close()
	if err := server.Shutdown(context.Background()); err != nil {
		return err
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
