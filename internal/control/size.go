package control

import (
	"encoding/json"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// changeSize takes in what nodes are told of the fleet's size.
func (s *State) changeSize(c store.Change) error {
	s.size = record.Size{}
	if c.Item.Key != record.SizeKey || c.Deleted {
		return nil
	}
	return json.Unmarshal(c.Item.Value, &s.size)
}

// resize tells nodes of the fleet's size, if it makes a difference to their
// leases.
func (s *State) resize() []store.Write {
	if s.rehearsed {
		return nil
	}
	size := s.size.Resize(s.registered, s.config.Renewals)
	if size == s.size {
		return nil
	}
	return []store.Write{store.Put(record.SizeKey, encode(size))}
}
