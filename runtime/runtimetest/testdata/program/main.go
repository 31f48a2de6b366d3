// Program is the process of the containers that package runtimetest starts on
// runtimes that run real ones.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/runtimetest"
)

func main() {
	got := make(chan os.Signal, 16)
	signal.Notify(got, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGQUIT)
	signals := make(chan runtime.Signal, 16)
	go func() {
		for s := range got {
			signals <- runtime.Signal(s.(syscall.Signal))
		}
	}()
	os.Exit(runtimetest.Program{
		Args: os.Args[1:], Env: os.Environ(),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Signals: signals, System: system{},
	}.Run(context.Background()))
}

type system struct{}

func (system) ID() (int, int)                        { return os.Getuid(), os.Getgid() }
func (system) Hostname() (string, error)             { return os.Hostname() }
func (system) Getwd() (string, error)                { return os.Getwd() }
func (system) ReadFile(name string) ([]byte, error)  { return os.ReadFile(name) }
func (system) Stat(name string) (os.FileInfo, error) { return os.Stat(name) }
func (system) WriteFile(name string, data []byte, mode os.FileMode) error {
	return os.WriteFile(name, data, mode)
}

func (system) Eat(bytes int) {
	b := make([]byte, bytes)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	sink = b
}

var sink []byte
