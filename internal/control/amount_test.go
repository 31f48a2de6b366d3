package control

import "testing"

// Shares that come out odd are rounded to the side on which more serve.
func TestBudgetOf(t *testing.T) {
	for _, tt := range []struct {
		budget Budget
		n      int
		want   int // that serve at least
	}{
		{Budget{Amount: 2}, 3, 2},
		{Budget{Amount: 5}, 3, 3},
		{Budget{Amount: -50}, 3, 2}, // one and a half
		{Budget{Amount: -1}, 3, 1},
		{Budget{Amount: -100}, 3, 3},
		{Budget{Amount: -50}, 0, 0},
		{Budget{Amount: 1, Unavailable: true}, 3, 2},
		{Budget{Amount: 5, Unavailable: true}, 3, 0},
		{Budget{Amount: -50, Unavailable: true}, 3, 2}, // one may be missing
		{Budget{Amount: -1, Unavailable: true}, 3, 3},
	} {
		if got := tt.budget.of(tt.n); got != tt.want {
			t.Errorf("of %d replicas with %+v at least %d are to serve, want %d", tt.n, tt.budget, got, tt.want)
		}
	}
}
