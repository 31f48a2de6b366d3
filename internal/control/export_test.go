package control

// Doubting has each plan of states with the config made twice, and told where
// what is left out because it is calm would have made a difference.
func (c Config) Doubting(tell func(string)) Config {
	c.doubt = tell
	return c
}
