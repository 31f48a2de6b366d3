//go:build linux

package clustertest

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Shape is what a link does to frames in one direction. The zero value passes
// them on at once.
type Shape struct {
	// Delay is added to each frame, and of Jitter a random part. Jitter alone
	// does not change their order.
	Delay, Jitter time.Duration
	// Lose, Duplicate and Reorder are shares, 0 to 1: of frames that vanish, that
	// come twice, and that come as much as ReorderBy later, behind others.
	Lose, Duplicate, Reorder float64
	// ReorderBy is how late those are; 10 ms when 0.
	ReorderBy time.Duration
}

// Shape changes the host's link from now on: what the host sends, and what it is
// sent. Frames under way arrive as they would have. It needs [Options.Shaped].
func (h *Host) Shape(sends, receives Shape) error {
	if h.wire == nil {
		return fmt.Errorf("shape the link of %s: it is the kernel's; give the cluster Options.Shaped", h.Name)
	}
	for _, s := range []Shape{sends, receives} {
		for _, share := range []float64{s.Lose, s.Duplicate, s.Reorder} {
			if share < 0 || share > 1 {
				return fmt.Errorf("shape the link of %s: a share is %v; want 0 to 1", h.Name, share)
			}
		}
		if s.Delay < 0 || s.Jitter < 0 || s.ReorderBy < 0 {
			return fmt.Errorf("shape the link of %s: a time is negative", h.Name)
		}
	}
	h.wire.lines[0].set(sends)
	h.wire.lines[1].set(receives)
	return nil
}

// wire joins a TAP device in a host with one that is a port of the bridge.
type wire struct {
	ends  [2]*os.File
	lines [2]*line // sends, receives
	wg    sync.WaitGroup
}

func newWire(host, link *os.File, port string, seed uint64) (*wire, error) {
	w := &wire{}
	for i, end := range []struct {
		ns   *os.File
		name string
	}{{host, "eth0"}, {link, port}} {
		err := enter(func() (err error) {
			w.ends[i], err = openTap(end.name)
			return err
		}, end.ns)
		if err != nil {
			return nil, errors.Join(err, w.close())
		}
	}
	for i := range w.lines {
		l := newLine(w.ends[1-i], seed<<1|uint64(i))
		w.lines[i] = l
		from := w.ends[i]
		w.wg.Go(func() { l.read(from) })
		w.wg.Go(l.write)
	}
	return w, nil
}

// openTap makes a TAP device in the calling thread's network namespace, which
// lasts as long as the file is open.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		// Without NAPI what is written waits in a queue of the processor that the
		// writing thread is on, and frames overtake each other when that changes.
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_NAPI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make TAP device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "tap "+name), nil
}

func (w *wire) close() error {
	var errs []error
	for _, f := range w.ends {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	for _, l := range w.lines {
		if l != nil {
			l.end()
		}
	}
	w.wg.Wait()
	return errors.Join(errs...)
}

// queueLength is how many frames are under way in one direction at most. More
// are lost, as in a router.
const queueLength = 4096

// line is one direction of a wire.
type line struct {
	to     *os.File
	random *rand.Rand // of the reader

	mu    sync.Mutex // guards what follows
	shape Shape
	queue frames
	order uint64        // of arrival
	last  time.Time     // when the newest frame in order is due
	wake  chan struct{} // has a token when the queue has a new first
	ended bool
}

func newLine(to *os.File, seed uint64) *line {
	return &line{to: to, random: rand.New(rand.NewPCG(seed, 0)), wake: make(chan struct{}, 1)}
}

func (l *line) set(s Shape) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shape = s
}

// maxFrame is more than an Ethernet frame with the kernel's offloads of a TAP
// device, which this one has not asked for.
const maxFrame = 65536

// read takes frames until the device is closed.
func (l *line) read(from *os.File) {
	buffer := make([]byte, maxFrame)
	for {
		n, err := from.Read(buffer)
		if errors.Is(err, unix.EIO) || errors.Is(err, unix.EBADFD) {
			time.Sleep(time.Millisecond) // the device is down
			continue
		}
		if err != nil {
			return
		}
		l.take(time.Now(), append([]byte(nil), buffer[:n]...))
	}
}

// take decides what becomes of a frame.
func (l *line) take(now time.Time, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.shape
	// Drawn in any case, so that what becomes of one frame does not depend on
	// what is asked of others.
	lose, twice, late, jitter := l.random.Float64(), l.random.Float64(), l.random.Float64(), l.random.Float64()
	if lose < s.Lose || len(l.queue) >= queueLength {
		return
	}
	due := now.Add(s.Delay + time.Duration(jitter*float64(s.Jitter)))
	if late < s.Reorder {
		by := s.ReorderBy
		if by == 0 {
			by = 10 * time.Millisecond
		}
		due = due.Add(by)
	} else {
		if due.Before(l.last) {
			due = l.last
		}
		l.last = due
	}
	copies := 1
	if twice < s.Duplicate {
		copies = 2
	}
	for range copies {
		l.order++
		heap.Push(&l.queue, frame{due, l.order, data})
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// write passes frames on when they are due.
func (l *line) write() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		data, wait, ended := l.next(time.Now())
		switch {
		case ended:
			return
		case data != nil:
			_, _ = l.to.Write(data) // a device that is down loses it, as a cable does
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-l.wake:
		}
	}
}

// next takes the frame that is due, or tells how long there is none.
func (l *line) next(now time.Time) (data []byte, wait time.Duration, ended bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return nil, 0, true
	}
	if len(l.queue) == 0 {
		return nil, time.Hour, false
	}
	if wait := l.queue[0].due.Sub(now); wait > 0 {
		return nil, wait, false
	}
	return heap.Pop(&l.queue).(frame).data, 0, false
}

func (l *line) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// frame is one that is under way.
type frame struct {
	due   time.Time
	order uint64
	data  []byte
}

// frames is a heap of frames, the one that is due first.
type frames []frame

func (f frames) Len() int { return len(f) }
func (f frames) Less(i, j int) bool {
	if f[i].due.Equal(f[j].due) {
		return f[i].order < f[j].order
	}
	return f[i].due.Before(f[j].due)
}
func (f frames) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *frames) Push(x any)   { *f = append(*f, x.(frame)) }
func (f *frames) Pop() any {
	old := *f
	last := old[len(old)-1]
	*f = old[:len(old)-1]
	return last
}
