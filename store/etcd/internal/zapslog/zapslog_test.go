package zapslog

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/zap"
)

func TestLevelsAndFields(t *testing.T) {
	var out bytes.Buffer
	lg := New(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
		Level:       slog.LevelInfo,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr { return dropTime(a) },
	})))
	lg.Debug("not this")
	lg.With(zap.String("member", "a")).Named("raft").Info("elected", zap.Uint64("term", 7), zap.Strings("peers", []string{"b", "c"}))
	lg.Warn("slow", zap.Error(errors.New("disk")))
	lg.Error("lost")
	want := `level=INFO msg=elected member=a logger=raft term=7 peers="[b c]"
level=WARN msg=slow error=disk
level=ERROR msg=lost
`
	if got := out.String(); got != want {
		t.Errorf("logged\n%swant\n%s", got, want)
	}
}

func dropTime(a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// TestFatalEndsTheGoroutineAlone has what zap would end the process for, and
// what it would panic for.
func TestFatalEndsTheGoroutineAlone(t *testing.T) {
	for name, log := range map[string]func(*zap.Logger, string, ...zap.Field){
		"fatal": (*zap.Logger).Fatal, "panic": (*zap.Logger).Panic,
	} {
		t.Run(name, func(t *testing.T) {
			told := make(chan string, 1)
			lg := New(slog.New(slog.DiscardHandler), func(message string) { told <- message })
			ended, went := make(chan struct{}), false
			go func() {
				defer close(ended)
				log(lg, "cannot write", zap.String("path", "/x"), zap.Error(errors.New("no space")))
				went = true
			}()
			<-ended
			if went {
				t.Error("the goroutine went on")
			}
			if got := <-told; !strings.Contains(got, "cannot write: no space") {
				t.Errorf("told %q, want the message and its error", got)
			}
		})
	}
}
