package record

// Next is what an agent is to have ready of a task's successor before the task
// is told to stop.
type Next struct {
	Hash   string      `json:"hash"` // of the successor's template
	Images []NextImage `json:"images"`
}

// NextImage is an image that the successor's containers run.
type NextImage struct {
	Ref  string `json:"ref"`
	Pull string `json:"pull,omitempty"` // a runtime.PullPolicy
}

// Fetched is how far an agent is with a Next.
type Fetched struct {
	Hash string `json:"hash"` // of the Next
	// Done is set when all of it is ready.
	Done bool `json:"done,omitempty"`
	// Failure is why it is not yet; the agent tries again, unless the failure is
	// permanent.
	Failure *Failure `json:"failure,omitempty"`
}
