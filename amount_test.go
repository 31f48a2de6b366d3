package orchestrate

import (
	"encoding/json"
	"testing"
)

func TestAmount(t *testing.T) {
	for _, c := range []struct {
		amount   Amount
		n        int
		down, up int
	}{
		{"", 10, -1, -1},
		{"3", 10, 3, 3},
		{"0", 10, 0, 0},
		{"25%", 10, 2, 3},
		{"100%", 7, 7, 7},
		{"1%", 1, 0, 1},
		{"0%", 9, 0, 0},
		{"-1", 9, -1, -1},
		{"+1", 9, -1, -1},
		{"101%", 9, -1, -1},
		{"x", 9, -1, -1},
		{"%", 9, -1, -1},
		{"99999999999999999999", 9, -1, -1},
		{"25 %", 9, -1, -1},
	} {
		if got := c.amount.Of(c.n, false); got != c.down {
			t.Errorf("Amount(%q).Of(%d, down) = %d, want %d", c.amount, c.n, got, c.down)
		}
		if got := c.amount.Of(c.n, true); got != c.up {
			t.Errorf("Amount(%q).Of(%d, up) = %d, want %d", c.amount, c.n, got, c.up)
		}
	}
}

func TestAmountJSON(t *testing.T) {
	for a, want := range map[Amount]string{"3": `3`, "25%": `"25%"`, "007": `"007"`, "x": `"x"`} {
		if got, err := json.Marshal(a); err != nil || string(got) != want {
			t.Errorf("Marshal(%q) = %s, %v; want %s, as records of earlier versions have it", string(a), got, err, want)
		}
	}
	for text, want := range map[string]Amount{`3`: "3", `"25%"`: "25%", `"3"`: "3"} {
		var got Amount
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("Unmarshal(%s) = %q, %v; want %q", text, got, err, want)
		}
		back, err := json.Marshal(got)
		if again := Amount(""); err != nil || json.Unmarshal(back, &again) != nil || again != want {
			t.Errorf("Marshal(%q) = %s, %v; which reads as %q", got, back, err, again)
		}
	}
	for _, text := range []string{`2.5`, `true`, `{}`} {
		if err := json.Unmarshal([]byte(text), new(Amount)); err == nil {
			t.Errorf("Unmarshal(%s) was taken; want an error", text)
		}
	}
}
