package scheduler

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

type constraintParser struct {
	text string
	at   int
}

func (p *constraintParser) fail(want string) error {
	return &ParseError{Text: p.text, Offset: p.at, Want: want}
}

func (p *constraintParser) space() {
	for p.at < len(p.text) && (p.text[p.at] == ' ' || p.text[p.at] == '\t') {
		p.at++
	}
}

func isWord(r rune) bool {
	return r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("-_./:+@*", r))
}

// word reads letters, digits and the few signs allowed without quotes.
func (p *constraintParser) word() string {
	start := p.at
	for p.at < len(p.text) && isWord(rune(p.text[p.at])) {
		p.at++
	}
	return p.text[start:p.at]
}

// keyword reads w if it is next and stands alone.
func (p *constraintParser) keyword(w string) bool {
	p.space()
	start := p.at
	if p.word() == w {
		return true
	}
	p.at = start
	return false
}

func (p *constraintParser) value() (string, error) {
	p.space()
	if p.at < len(p.text) && p.text[p.at] == '"' {
		quoted, err := strconv.QuotedPrefix(p.text[p.at:])
		if err != nil {
			return "", p.fail("a closing quote")
		}
		v, err := strconv.Unquote(quoted)
		if err != nil {
			return "", p.fail("a quoted value as in Go")
		}
		p.at += len(quoted)
		return v, nil
	}
	v := p.word()
	if v == "" {
		return "", p.fail("a value, in quotes if it has anything but letters, digits and -_./:+@*")
	}
	return v, nil
}

func (p *constraintParser) parse() (Constraint, error) {
	var c Constraint
	p.space()
	if c.Key = p.word(); c.Key == "" {
		return c, p.fail("a key such as node.labels.zone")
	}
	if err := p.operator(&c); err != nil {
		return c, err
	}
	switch c.Op {
	case OpExists, OpNotExists:
	case OpIn, OpNotIn:
		if err := p.list(&c); err != nil {
			return c, err
		}
	default:
		start := p.at
		if c.Op != OpMatch && c.Op != OpNotMatch && p.keyword("semver") {
			p.space()
			c.Semver = p.at < len(p.text)
			if !c.Semver { // the word itself was the value
				p.at = start
			}
		}
		v, err := p.value()
		if err != nil {
			return c, err
		}
		c.Values = []string{v}
	}
	p.space()
	if p.at < len(p.text) {
		return c, p.fail("nothing more")
	}
	return c, nil
}

func (p *constraintParser) operator(c *Constraint) error {
	p.space()
	for _, op := range []Op{OpEqual, OpNotEqual, OpMatch, OpNotMatch, OpGreaterEqual, OpLessEqual, OpGreater, OpLess} {
		if strings.HasPrefix(p.text[p.at:], string(op)) {
			p.at += len(op)
			c.Op = op
			return nil
		}
	}
	switch {
	case p.keyword("in"):
		c.Op = OpIn
	case p.keyword("exists"):
		c.Op = OpExists
	case p.keyword("not"):
		switch {
		case p.keyword("in"):
			c.Op = OpNotIn
		case p.keyword("exists"):
			c.Op = OpNotExists
		default:
			return p.fail("in or exists after not")
		}
	default:
		return p.fail("an operator: ==, !=, in, not in, exists, not exists, >, >=, <, <=, =~, !~")
	}
	return nil
}

// list reads (a, b) or a, b.
func (p *constraintParser) list(c *Constraint) error {
	p.space()
	open := p.at < len(p.text) && p.text[p.at] == '('
	if open {
		p.at++
	}
	for {
		v, err := p.value()
		if err != nil {
			return err
		}
		c.Values = append(c.Values, v)
		p.space()
		if p.at < len(p.text) && p.text[p.at] == ',' {
			p.at++
			continue
		}
		break
	}
	if open {
		if p.at >= len(p.text) || p.text[p.at] != ')' {
			return p.fail("a comma or a closing parenthesis")
		}
		p.at++
	}
	return nil
}

// quoteWord writes v so that value reads it back.
func quoteWord(v string) string {
	if v == "" || v == "semver" || strings.ContainsFunc(v, func(r rune) bool { return !isWord(r) }) {
		return strconv.Quote(v)
	}
	return v
}
