package runtime

// Fileless is a Runtime whose containers have no files, such as one of a
// simulation: nothing of what an agent would give them, resolv.conf and hosts,
// is written.
type Fileless interface {
	// Fileless does nothing: having it says it all.
	Fileless()
}
