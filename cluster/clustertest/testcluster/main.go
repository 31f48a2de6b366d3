//go:build linux

// Testcluster makes the machines of a cluster on this one, runs a program on each,
// and fails them as it is told to.
//
//	testcluster run -hosts 3 -- /usr/local/bin/myapp --name {name} --address {v4} --dir {dir}
//	testcluster clean
//
// In the program's arguments {name}, {v4}, {v6} and {dir} are the host's, and {all}
// is NAME=IPv4 of every host, with commas. Then it takes commands, one a line:
//
//	status                     the hosts, their addresses and processes
//	start HOST                 the program again, where it has ended
//	kill HOST, stop HOST, cont HOST
//	term HOST                  SIGTERM
//	cut HOST                   its link says nothing any more, and
//	heal [HOST]                it does again; or all do
//	part HOST[,HOST] HOST[,…]  the groups do not reach each other
//	lose FROM TO SHARE         of frames, 0 to 1; - stands for any host
//	delay HOST TIME [JITTER]   with run -shaped
//	double HOST SHARE          likewise
//	reorder HOST SHARE         likewise
//	fill HOST, free HOST       its disk, with run -disk BYTES
//	logs HOST                  the end of what its program has written
//	exec HOST COMMAND …        in the host's namespaces
//
// At the end of its input, at quit, or when it is interrupted, it removes
// everything. When it was killed, clean does. It needs root.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/orchestrate-go/orchestrate/cluster/clustertest"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "testcluster:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("want run or clean; see go doc github.com/orchestrate-go/orchestrate/cluster/clustertest/testcluster")

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) == 0 {
		return errUsage
	}
	switch args[0] {
	case "clean":
		removed, err := clustertest.Clean()
		for _, dir := range removed {
			fmt.Fprintln(out, "removed", dir)
		}
		return err
	case "run":
	default:
		return errUsage
	}
	var opts clustertest.Options
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.IntVar(&opts.Hosts, "hosts", 3, "how many hosts")
	flags.StringVar(&opts.Dir, "dir", "", "where the hosts' folders are made")
	flags.Int64Var(&opts.Disk, "disk", 0, "bytes of a file system in memory for each host; 0: this machine's")
	flags.BoolVar(&opts.Shaped, "shaped", false, "links that can delay, double and reorder")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, err := clustertest.New(opts)
	if err != nil {
		return err
	}
	s := &session{c: c, program: flags.Args(), shapes: map[string]clustertest.Shape{}, out: out}
	err = s.serve(ctx, in)
	return errors.Join(err, c.Close())
}

// session is a cluster and whoever commands it.
type session struct {
	c       *clustertest.Cluster
	program []string
	shapes  map[string]clustertest.Shape // of both directions, by host
	out     io.Writer
}

func (s *session) serve(ctx context.Context, in io.Reader) error {
	for _, h := range s.c.Hosts() {
		if err := s.start(h); err != nil {
			return err
		}
	}
	s.status()
	lines, ended := make(chan string), make(chan error, 1)
	go func() { // it ends with the program where nobody closes its input
		scan := bufio.NewScanner(in)
		for scan.Scan() {
			select {
			case lines <- scan.Text():
			case <-ctx.Done():
				return
			}
		}
		ended <- scan.Err()
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return err
		case line := <-lines:
			words := strings.Fields(line)
			if len(words) == 0 {
				continue
			}
			if words[0] == "quit" {
				return nil
			}
			if err := s.do(words[0], words[1:]); err != nil {
				fmt.Fprintln(s.out, err)
			}
		}
	}
}

// processName is the program's on each host.
const processName = "program"

// start starts the program on a host, if there is one.
func (s *session) start(h *clustertest.Host) error {
	if len(s.program) == 0 {
		return nil
	}
	var all []string
	for _, other := range s.c.Hosts() {
		all = append(all, other.Name+"="+other.IPv4.String())
	}
	replace := strings.NewReplacer("{name}", h.Name, "{v4}", h.IPv4.String(), "{v6}", h.IPv6.String(), "{dir}", h.Dir, "{all}", strings.Join(all, ","))
	p := clustertest.Program{Name: processName, Path: s.program[0]}
	for _, arg := range s.program[1:] {
		p.Args = append(p.Args, replace.Replace(arg))
	}
	path, err := exec.LookPath(p.Path)
	if err != nil {
		return err
	}
	p.Path = path
	_, err = h.Start(p)
	return err
}

func (s *session) status() {
	fmt.Fprintf(s.out, "this program is at %v and %v\n", s.c.IPv4, s.c.IPv6)
	for _, h := range s.c.Hosts() {
		state := "nothing runs"
		if p := h.Process(processName); p != nil && p.Running() {
			state = fmt.Sprintf("process %d", p.PID())
		}
		fmt.Fprintf(s.out, "%s\t%v\t%v\t%s\t%s\n", h.Name, h.IPv4, h.IPv6, h.Dir, state)
	}
}

// do does one command.
func (s *session) do(command string, args []string) error {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	switch command {
	case "status":
		s.status()
		return nil
	case "heal":
		if len(args) == 0 {
			return s.c.Heal()
		}
	case "part":
		var groups [][]string
		for _, a := range args {
			groups = append(groups, strings.Split(a, ","))
		}
		return s.c.Partition(groups...)
	case "lose":
		share, err := strconv.ParseFloat(arg(2), 64)
		if err != nil {
			return fmt.Errorf("the share %q: want 0 to 1", arg(2))
		}
		any := func(name string) string { return strings.TrimPrefix(name, "-") }
		return s.c.Lose(any(arg(0)), any(arg(1)), share)
	}
	h := s.c.Host(arg(0))
	if h == nil {
		return fmt.Errorf("%s: there is no host %q", command, arg(0))
	}
	switch command {
	case "cut":
		return h.Cut()
	case "heal":
		return h.Heal()
	case "fill":
		return h.FillDisk()
	case "free":
		return h.FreeDisk()
	case "start":
		return s.start(h)
	case "delay", "double", "reorder":
		return s.shape(h, command, arg(1), arg(2))
	case "exec":
		return s.exec(h, args[1:])
	}
	p := h.Process(processName)
	if p == nil {
		return fmt.Errorf("%s: nothing was started on %s", command, h.Name)
	}
	switch command {
	case "kill":
		return p.Kill()
	case "stop":
		return p.Stop()
	case "cont":
		return p.Continue()
	case "term":
		return p.Signal(syscall.SIGTERM)
	case "logs":
		_, err := fmt.Fprint(s.out, p.Output(8<<10))
		return err
	}
	return fmt.Errorf("there is no command %q", command)
}

func (s *session) shape(h *clustertest.Host, command, first, second string) (err error) {
	shape := s.shapes[h.Name]
	switch command {
	case "delay":
		if shape.Delay, err = time.ParseDuration(first); err == nil && second != "" {
			shape.Jitter, err = time.ParseDuration(second)
		}
	case "double":
		shape.Duplicate, err = strconv.ParseFloat(first, 64)
	case "reorder":
		shape.Reorder, err = strconv.ParseFloat(first, 64)
	}
	if err != nil {
		return err
	}
	if err := h.Shape(shape, shape); err != nil {
		return err
	}
	s.shapes[h.Name] = shape
	return nil
}

func (s *session) exec(h *clustertest.Host, command []string) error {
	if len(command) == 0 {
		return errors.New("exec: want a command")
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	p, err := h.Start(clustertest.Program{Name: fmt.Sprintf("exec-%d", time.Now().UnixNano()), Path: path, Args: command[1:]})
	if err != nil {
		return err
	}
	err = p.Wait()
	fmt.Fprint(s.out, p.Output(64<<10))
	return err
}
