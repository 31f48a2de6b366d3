package health

import "context"

// TCPChecker runs checks of kind TCP: a connection that is made is healthy,
// and is closed at once without a byte sent. The zero value is ready.
type TCPChecker struct {
	Dial DialFunc // default: a [net.Dialer]
}

// Check probes target by check.TCP.
func (c *TCPChecker) Check(ctx context.Context, target Target, check Check) error {
	if check.TCP == nil {
		return &SpecError{Field: "tcp", Reason: "is not set; the TCP checker runs checks of kind tcp"}
	}
	address, err := address(target, check.TCP.Port)
	if err != nil {
		return err
	}
	conn, err := dial(ctx, c.Dial, address)
	if err != nil {
		return err
	}
	// An error of closing says nothing of the server.
	_ = conn.Close()
	return nil
}
