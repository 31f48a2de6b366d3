package orchestrate

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/orchestrate-go/orchestrate/internal/control"
)

// Amount is a number of tasks: "3", or a share of the service's replicas:
// "25%". Empty is the default that the field's comment names. In JSON it is a
// string or a whole number.
type Amount string

// Of is the number of tasks that a means for n replicas; a share is rounded up
// if roundUp is set, and else down. It is negative when a is empty or cannot be
// read.
func (a Amount) Of(n int, roundUp bool) int {
	value, percent, err := a.parse()
	switch {
	case err != nil || a == "":
		return -1
	case !percent:
		return value
	case roundUp:
		return (n*value + 99) / 100
	}
	return n * value / 100
}

// parse reads the number, and whether it is a percentage. Of an empty Amount it
// is 0.
func (a Amount) parse() (value int, percent bool, err error) {
	if a == "" {
		return 0, false, nil
	}
	digits, percent := strings.CutSuffix(string(a), "%")
	value, err = strconv.Atoi(digits)
	switch {
	case err != nil || value < 0 || digits[0] == '+':
		return 0, false, fmt.Errorf(`is neither of both: a number of tasks such as "3", or a share of the replicas such as "25%%"`)
	case percent && value > 100:
		return 0, false, fmt.Errorf("is more than 100%%")
	case value > MaxReplicas:
		return 0, false, fmt.Errorf("is more than %d", MaxReplicas)
	}
	return value, percent, nil
}

// control is a as the planner counts.
func (a Amount) control() control.Amount {
	value, percent, err := a.parse()
	switch {
	case err != nil:
		return 0
	case percent:
		return control.Amount(-value)
	}
	return control.Amount(value)
}

// none reports whether a says that it is no task.
func (a Amount) none() bool {
	value, _, err := a.parse()
	return a != "" && err == nil && value == 0
}

// MarshalJSON writes a number of tasks as a number, and a share as a string.
func (a Amount) MarshalJSON() ([]byte, error) {
	if n, err := strconv.Atoi(string(a)); err == nil && strconv.Itoa(n) == string(a) {
		return []byte(a), nil
	}
	return json.Marshal(string(a))
}

// UnmarshalJSON reads a string or a whole number. What the string says is
// checked by validation, with all else.
func (a *Amount) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	if len(data) > 0 && data[0] != '"' {
		n, err := strconv.Atoi(string(data))
		if err != nil {
			return fmt.Errorf(`want a whole number or a share such as "25%%"`)
		}
		*a = Amount(strconv.Itoa(n))
		return nil
	}
	return json.Unmarshal(data, (*string)(a))
}
