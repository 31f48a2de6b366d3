package orchestrate

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// seccompProfile is LinuxSeccomp of OCI runtime-spec 1.3, config-linux.md,
// section Seccomp.
type seccompProfile struct {
	DefaultAction    string        `json:"defaultAction"`
	DefaultErrnoRet  *uint         `json:"defaultErrnoRet"`
	Architectures    []string      `json:"architectures"`
	Flags            []string      `json:"flags"`
	ListenerPath     string        `json:"listenerPath"`
	ListenerMetadata string        `json:"listenerMetadata"`
	Syscalls         []seccompRule `json:"syscalls"`
}

type seccompRule struct {
	Names    []string         `json:"names"`
	Action   string           `json:"action"`
	ErrnoRet *uint            `json:"errnoRet"`
	Args     []seccompOperand `json:"args"`
}

type seccompOperand struct {
	Index    uint   `json:"index"`
	Value    uint64 `json:"value"`
	ValueTwo uint64 `json:"valueTwo"`
	Op       string `json:"op"`
}

// seccomp checks a profile as strictly as the spec itself: one that the
// runtime reads otherwise than its author meant is a hole. The problems name
// the place inside the profile.
func (c *checks) seccomp(at, profile string) {
	var p seccompProfile
	problems := decode([]byte(profile), reflect.ValueOf(&p).Elem())
	if len(problems) == 0 {
		var inner checks
		inner.seccompProfile(&p)
		problems = inner.problems
	}
	for _, problem := range problems {
		if name := problem.Path; name == "archMap" || name == "defaultAction" && problem.Reason == unknownField {
			problem.Reason = "belongs to Docker's form of profile; give the form of the OCI runtime-spec"
		}
		c.add(at, nil, "is not a profile in the OCI runtime-spec's form: %s", problem.Error())
	}
}

func (c *checks) seccompProfile(p *seccompProfile) {
	c.seccompAction("defaultAction", p.DefaultAction)
	for i, a := range p.Architectures {
		if !strings.HasPrefix(a, "SCMP_ARCH_") {
			c.add(at("architectures", i), a, "is not an architecture; they begin with SCMP_ARCH_")
		}
	}
	for i, f := range p.Flags {
		if !strings.HasPrefix(f, "SECCOMP_FILTER_FLAG_") {
			c.add(at("flags", i), f, "is not a flag; they begin with SECCOMP_FILTER_FLAG_")
		}
	}
	operators := []string{"SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"}
	for i, rule := range p.Syscalls {
		path := at("syscalls", i)
		if len(rule.Names) == 0 {
			c.add(path+".names", nil, "has no system call; name at least one")
		}
		for j, name := range rule.Names {
			if name == "" {
				c.add(at(path+".names", j), nil, "is empty; name a system call")
			}
		}
		c.seccompAction(path+".action", rule.Action)
		for j, arg := range rule.Args {
			if arg.Index > 5 {
				c.add(fmt.Sprintf("%s.args[%d].index", path, j), arg.Index, "is not the place of an argument; from 0 to 5")
			}
			if !slices.Contains(operators, arg.Op) {
				c.add(fmt.Sprintf("%s.args[%d].op", path, j), arg.Op, "is not an operator; use one of %s", strings.Join(operators, ", "))
			}
		}
	}
}

func (c *checks) seccompAction(path, action string) {
	actions := []string{"SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP",
		"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE", "SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY"}
	if !slices.Contains(actions, action) {
		c.add(path, action, "is not an action; use one of %s", strings.Join(actions, ", "))
	}
}
