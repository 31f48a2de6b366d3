//go:build linux

package containerd

import (
	"context"
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// containerdLog passes what containerd's packages log, by way of the context,
// to a slog.Logger, as debug messages: what matters is returned as an error.
// A few of them do not take a context and write to logrus's standard logger.
func containerdLog(to *slog.Logger) *log.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.AddHook(logHook{to})
	return logrus.NewEntry(l)
}

type logHook struct{ to *slog.Logger }

func (logHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h logHook) Fire(e *logrus.Entry) error {
	if !h.to.Enabled(context.Background(), slog.LevelDebug) {
		return nil
	}
	attrs := make([]any, 0, 2*len(e.Data)+2)
	for k, v := range e.Data {
		attrs = append(attrs, k, v)
	}
	h.to.Debug("containerd: "+e.Message, append(attrs, "level", e.Level.String())...)
	return nil
}
