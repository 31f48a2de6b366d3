package health

import (
	"context"
	"fmt"
)

// ExecChecker runs checks of kind Exec through [Target.Exec]. The zero value
// is ready.
type ExecChecker struct{}

// ExitError is a probe command that exited with another code than 0.
type ExitError struct {
	Code   int
	Output string // its first bytes
}

func (e *ExitError) Error() string {
	if e.Output == "" {
		return fmt.Sprintf("the command exited with code %d", e.Code)
	}
	return fmt.Sprintf("the command exited with code %d: %s", e.Code, e.Output)
}

// Check probes target by check.Exec. A command that fails is an [*ExitError].
func (ExecChecker) Check(ctx context.Context, target Target, check Check) error {
	if check.Exec == nil {
		return &SpecError{Field: "exec", Reason: "is not set; the exec checker runs checks of kind exec"}
	}
	if target.Exec == nil {
		return &SpecError{Field: "exec", Reason: "cannot run, since the runtime has no exec; use another kind of check"}
	}
	code, output, err := target.Exec(ctx, check.Exec.Command)
	if err != nil {
		return because(ctx, fmt.Errorf("run %q in the container: %w", check.Exec.Command, err))
	}
	if code != 0 {
		e := &ExitError{Code: code}
		if len(output) > 0 {
			e.Output = quote(output)
		}
		return e
	}
	return nil
}
