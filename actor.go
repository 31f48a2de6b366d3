package orchestrate

import (
	"context"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/record"
)

// The actors of what nobody was named for; see [WithActor] and [Cause].
const (
	ActorApplication = record.ActorApplication // a call of the application
	ActorPlanner     = record.ActorPlanner     // the fleet itself, which replaces what failed or was lost
	ActorTracker     = "image-tracker"         // the fleet itself, which follows tags; see [Service.Track]
)

type actorKey struct{}

// WithActor returns a context whose calls of a [Fleet] are done in the name of
// actor, such as "alice@example" or "deploy-bot": what they change, and what
// follows from it, names it in the [Cause] of its events. It is a name for
// people and is not checked; control characters are dropped, and what is longer
// than 128 bytes is cut. An empty one is [ActorApplication].
func WithActor(ctx context.Context, actor string) context.Context {
	actor = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(actor, ""))
	return context.WithValue(ctx, actorKey{}, record.Clip(actor, record.MaxActor))
}

// actorOf is who a call is made for.
func actorOf(ctx context.Context) string {
	if a, _ := ctx.Value(actorKey{}).(string); a != "" {
		return a
	}
	return ActorApplication
}
