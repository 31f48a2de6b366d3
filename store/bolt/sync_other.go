//go:build !unix

package bolt

// syncDir does nothing where directories cannot be synced by a program.
func syncDir(string) error { return nil }
