// Package zapslog lets etcd's client and server, which log with zap, log to a
// slog.Logger.
package zapslog

import (
	"context"
	"log/slog"
	"runtime"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// New returns a zap logger that writes to l. What its user would end the
// process for (zap's Fatal and Panic) ends the goroutine instead, after onFatal
// was told: a library does not decide about its program.
func New(l *slog.Logger, onFatal ...func(message string)) *zap.Logger {
	hook := fatal(onFatal)
	return zap.New(&core{handler: l.Handler()}, zap.WithFatalHook(hook), zap.WithPanicHook(hook))
}

type fatal []func(string)

// OnWrite is called after a fatal message was written.
func (f fatal) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	for _, told := range f {
		told(text(entry.Entry, fields))
	}
	runtime.Goexit()
}

// text is a message with the error that it was about.
func text(entry zapcore.Entry, fields []zapcore.Field) string {
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			return entry.Message + ": " + err.Error()
		}
	}
	return entry.Message
}

// core is a zapcore.Core over a slog.Handler.
type core struct{ handler slog.Handler }

func (c *core) Enabled(l zapcore.Level) bool {
	return c.handler.Enabled(context.Background(), level(l))
}

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{handler: c.handler.WithAttrs(attrs(fields))}
}

func (c *core) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

func (c *core) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	record := slog.NewRecord(entry.Time, level(entry.Level), entry.Message, 0)
	if entry.LoggerName != "" {
		record.AddAttrs(slog.String("logger", entry.LoggerName))
	}
	record.AddAttrs(attrs(fields)...)
	return c.handler.Handle(context.Background(), record)
}

func (*core) Sync() error { return nil }

// level maps by meaning: both know the same four, and zap some worse than an
// error.
func level(l zapcore.Level) slog.Level {
	switch {
	case l <= zapcore.DebugLevel:
		return slog.LevelDebug
	case l == zapcore.InfoLevel:
		return slog.LevelInfo
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelError
}

func attrs(fields []zapcore.Field) []slog.Attr {
	out := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		m := zapcore.NewMapObjectEncoder()
		f.AddTo(m)
		for key, value := range m.Fields {
			out = append(out, slog.Any(key, value))
		}
	}
	return out
}
