package scheduler

import (
	"encoding/json"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
)

// Op is how a Constraint compares.
type Op string

// The operators. The comparing ones read numbers, or versions when the value
// starts with the word semver.
const (
	OpEqual        Op = "=="
	OpNotEqual     Op = "!="
	OpIn           Op = "in"
	OpNotIn        Op = "not in"
	OpExists       Op = "exists"
	OpNotExists    Op = "not exists"
	OpGreater      Op = ">"
	OpGreaterEqual Op = ">="
	OpLess         Op = "<"
	OpLessEqual    Op = "<="
	OpMatch        Op = "=~"
	OpNotMatch     Op = "!~"
)

// Constraint is a rule about a node. Make one with [ParseConstraint] or fill
// it in; in JSON it is its text.
type Constraint struct {
	// Key is node.id, node.hostname, node.os, node.arch or node.labels.NAME.
	Key string
	Op  Op
	// Values is empty for exists, one value for most, one or more for in.
	Values []string
	// Semver makes <, <=, > and >= compare versions (semver.org, 2.0.0; a
	// leading v and missing parts are allowed) instead of numbers, and == and
	// != too.
	Semver bool
}

// ParseError says where the text of a constraint stops making sense.
type ParseError struct {
	Text   string
	Offset int // bytes
	Want   string
}

func (e *ParseError) Error() string {
	return fmt.Sprintf("constraint %q: at byte %d: want %s", e.Text, e.Offset, e.Want)
}

// Is makes a ParseError match ErrInvalid.
func (e *ParseError) Is(target error) bool { return target == ErrInvalid }

// ParseConstraint reads one constraint:
//
//	node.labels.zone == eu
//	node.labels.zone in (eu, us)
//	node.labels.ssd exists
//	node.labels.cores >= 16
//	node.labels.ver >= semver 1.2
//	node.hostname =~ "web-[0-9]+"
//
// and the same with !=, not in, not exists, >, <, <= and !~. A value with
// anything but letters, digits and -_./:+@* is written in double quotes, as in
// Go. Errors are *ParseError or *InvalidError.
func ParseConstraint(text string) (Constraint, error) {
	p := constraintParser{text: text}
	c, err := p.parse()
	if err != nil {
		return Constraint{}, err
	}
	return c, c.Validate()
}

// MustConstraint is ParseConstraint for texts in a program's source; it panics
// where that returns an error.
func MustConstraint(text string) Constraint {
	c, err := ParseConstraint(text)
	if err != nil {
		panic(err)
	}
	return c
}

// Validate reports what is wrong with c as an *InvalidError.
func (c *Constraint) Validate() error {
	switch c.Key {
	case "node.id", "node.hostname", "node.os", "node.arch", "node.platform.os", "node.platform.arch":
	default:
		name, ok := strings.CutPrefix(c.Key, labelPrefix)
		if !ok || name == "" || strings.ContainsFunc(name, func(r rune) bool { return !isWord(r) }) {
			return invalid("constraint.key", c.Key, "node.id, node.hostname, node.os, node.arch or node.labels.NAME")
		}
	}
	want := 1
	switch c.Op {
	case OpEqual, OpNotEqual, OpGreater, OpGreaterEqual, OpLess, OpLessEqual, OpMatch, OpNotMatch:
	case OpExists, OpNotExists:
		want = 0
	case OpIn, OpNotIn:
		want = max(1, len(c.Values))
	default:
		return invalid("constraint.op", string(c.Op), "one of ==, !=, in, not in, exists, not exists, >, >=, <, <=, =~, !~")
	}
	if len(c.Values) != want {
		return invalid("constraint.values", c.Values, fmt.Sprintf("%d value for %s", want, c.Op))
	}
	compares := c.Op == OpGreater || c.Op == OpGreaterEqual || c.Op == OpLess || c.Op == OpLessEqual
	switch {
	case c.Semver && (compares || c.Op == OpEqual || c.Op == OpNotEqual):
		if _, ok := parseVersion(c.Values[0]); !ok {
			return invalid("constraint.values", c.Values[0], "a version such as 1.2.3")
		}
	case c.Semver:
		return invalid("constraint.semver", true, "semver only with ==, !=, >, >=, < and <=")
	case compares:
		if f, err := strconv.ParseFloat(c.Values[0], 64); err != nil || f != f {
			return invalid("constraint.values", c.Values[0], "a number")
		}
	case c.Op == OpMatch || c.Op == OpNotMatch:
		if _, err := wholly(c.Values[0]); err != nil {
			return invalid("constraint.values", c.Values[0], "a regular expression: "+err.Error())
		}
	}
	return nil
}

// String is the text that ParseConstraint reads back as the same constraint.
func (c Constraint) String() string {
	var b strings.Builder
	b.WriteString(c.Key)
	b.WriteByte(' ')
	b.WriteString(string(c.Op))
	switch c.Op {
	case OpExists, OpNotExists:
		return b.String()
	case OpIn, OpNotIn:
		b.WriteString(" (")
		for i, v := range c.Values {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(quoteWord(v))
		}
		b.WriteByte(')')
		return b.String()
	}
	if c.Semver {
		b.WriteString(" semver")
	}
	for _, v := range c.Values {
		b.WriteByte(' ')
		b.WriteString(quoteWord(v))
	}
	return b.String()
}

// MarshalJSON writes the constraint's text.
func (c Constraint) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }

// UnmarshalJSON reads the constraint's text.
func (c *Constraint) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	got, err := ParseConstraint(s)
	if err == nil {
		*c = got
	}
	return err
}

// Matches reports whether the constraint, which must be valid, holds for n. A
// node without the key satisfies !=, not in, not exists and !~, and nothing
// else.
func (c *Constraint) Matches(n *Node) bool {
	v, ok := n.attribute(c.Key)
	return c.compile()(v, ok)
}

// compile returns the constraint as a function of the attribute's value. The
// constraint is valid.
func (c *Constraint) compile() func(value string, has bool) bool {
	negate := func(f func(string) bool) func(string, bool) bool {
		return func(v string, has bool) bool { return !has || !f(v) }
	}
	assert := func(f func(string) bool) func(string, bool) bool {
		return func(v string, has bool) bool { return has && f(v) }
	}
	switch c.Op {
	case OpExists:
		return func(_ string, has bool) bool { return has }
	case OpNotExists:
		return func(_ string, has bool) bool { return !has }
	case OpIn:
		return assert(func(v string) bool { return slices.Contains(c.Values, v) })
	case OpNotIn:
		return negate(func(v string) bool { return slices.Contains(c.Values, v) })
	case OpMatch, OpNotMatch:
		re, err := wholly(c.Values[0])
		if err != nil {
			return func(string, bool) bool { return false }
		}
		if c.Op == OpMatch {
			return assert(re.MatchString)
		}
		return negate(re.MatchString)
	}
	if !c.Semver && c.Op == OpEqual {
		return assert(func(v string) bool { return v == c.Values[0] })
	}
	if !c.Semver && c.Op == OpNotEqual {
		return negate(func(v string) bool { return v == c.Values[0] })
	}
	compare := c.comparison()
	test := map[Op]func(int) bool{
		OpEqual:        func(d int) bool { return d == 0 },
		OpNotEqual:     func(d int) bool { return d == 0 },
		OpGreater:      func(d int) bool { return d > 0 },
		OpGreaterEqual: func(d int) bool { return d >= 0 },
		OpLess:         func(d int) bool { return d < 0 },
		OpLessEqual:    func(d int) bool { return d <= 0 },
	}[c.Op]
	holds := func(v string) bool {
		d, ok := compare(v)
		return ok && test(d)
	}
	if c.Op == OpNotEqual {
		return negate(holds)
	}
	return assert(holds)
}

// wholly compiles an expression that a value must match from its first byte to its
// last. It is written anew before it is put between other things: a \Q without a \E
// would quote these too.
func wholly(expr string) (*regexp.Regexp, error) {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil, err
	}
	return regexp.Compile(`^(?:` + re.String() + `)$`)
}

// comparison compares a node's value with the constraint's, and says whether
// the node's value can be compared at all.
func (c *Constraint) comparison() func(string) (int, bool) {
	if c.Semver {
		want, _ := parseVersion(c.Values[0])
		return func(v string) (int, bool) {
			got, ok := parseVersion(v)
			return got.compare(want), ok
		}
	}
	want, _ := strconv.ParseFloat(c.Values[0], 64)
	return func(v string) (int, bool) {
		got, err := strconv.ParseFloat(v, 64)
		switch {
		case err != nil || got != got:
			return 0, false
		case got < want:
			return -1, true
		case got > want:
			return 1, true
		}
		return 0, true
	}
}
