package runtimetest_test

import (
	"context"
	"testing"

	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/memory"
	"github.com/orchestrate-go/orchestrate/runtime/runtimetest"
)

// The test of a driver. One for real containers opens itself in place of
// memory.New, imports an image of the program in testdata/program, and sets
// System.
func ExampleTest() {
	const image = "orchestrate.test/program:1"
	program := memory.Program{Run: func(ctx context.Context, p *memory.Process) int {
		return runtimetest.Program{
			Args: p.Args[1:], Env: p.Env, Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, Signals: p.Signals,
		}.Run(ctx)
	}}
	_ = func(t *testing.T) { // func TestConformance
		runtimetest.Test(t, runtimetest.Harness{
			Open: func(ctx context.Context) (runtime.Runtime, func() error, error) {
				rt := memory.New(memory.Options{Strict: true})
				rt.SetImage(image, memory.Image{
					Config:  runtime.Image{Entrypoint: []string{"/program"}},
					Program: program,
				})
				_, err := rt.Pull(ctx, image, runtime.PullOptions{})
				return rt, rt.Close, err
			},
			Image: image,
		})
	}
}
