//go:build linux

// Batch runs a thousand short tasks on real containers as one job: each index is
// one item of a queue, done by a container of its own, once. A task that fails is
// tried again; some do, the first time. The program shows how far it is and
// leaves nothing behind.
//
// It needs root, containerd-shim-runc-v2 and runc; scripts/setup.sh gets them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	containerdlog "github.com/containerd/log"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/local"
	"github.com/orchestrate-go/orchestrate/runtime/image"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "task" {
		os.Exit(task())
	}
	dir := flag.String("dir", "/var/lib/orchestrate-batch", "folder of the fleet, removed at the end")
	tasks := flag.Int("tasks", 1000, "how many items the queue has")
	parallel := flag.Int("parallel", 8, "how many are done at a time")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := batch(ctx, *dir, *tasks, *parallel)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "batch:", err)
		os.Exit(1)
	}
}

// task is what a container does: the item of its index. Every 100th fails the
// first time.
func task() int {
	index, err := strconv.Atoi(os.Getenv(orchestrate.EnvIndex))
	if err != nil || index%100 == 99 && os.Getenv(orchestrate.EnvAttempt) == "0" {
		return 1
	}
	fmt.Printf("item %d squared is %d\n", index, index*index)
	return 0
}

func batch(ctx context.Context, dir string, tasks, parallel int) (err error) {
	if err := containerdlog.SetLevel("error"); err != nil {
		return err
	}
	f, err := local.Open(dir)
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, f.Destroy(end))
	}()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	img, err := image.FromBinary("batch:local", self, image.Options{Command: []string{"task"}})
	if err != nil {
		return err
	}
	if _, err := f.Load(ctx, img); err != nil {
		return err
	}
	began := time.Now()
	if err := f.Apply(ctx, orchestrate.Job{
		Name: "batch", Completions: tasks, Parallelism: parallel, RetryBackoff: 100 * time.Millisecond,
		Template: orchestrate.Template{Containers: []orchestrate.Container{{Image: "batch:local"}}},
	}); err != nil {
		return err
	}
	type end struct {
		result orchestrate.JobResult
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		r, err := f.WaitJob(ctx, "batch")
		ended <- end{r, err}
	}()
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case e := <-ended:
			if e.err != nil {
				return e.err
			}
			took := time.Since(began)
			fmt.Printf("%v; %d failures were tried again\n%.1f tasks a second for %v\n", e.result, e.result.Failures,
				float64(e.result.Completed+e.result.Failures)/took.Seconds(), took.Round(time.Second))
			return e.result.Err()
		case <-tick.C:
			st, err := f.Job(ctx, "batch")
			if err != nil {
				return err
			}
			r := st.Result
			fmt.Printf("%4.0fs  %d of %d completed, %d active, %d wait for a retry, %.1f a second\n", time.Since(began).Seconds(),
				r.Completed, r.Indexes, r.Active, r.Waiting, float64(r.Completed)/time.Since(began).Seconds())
		}
	}
}
