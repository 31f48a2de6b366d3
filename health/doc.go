// Package health decides whether containers are healthy.
//
// A [Check] is a probe as data, a [Checker] runs one probe, and a [Monitor]
// runs the probes of a whole node and reports changes. [Probes] are the three
// checks of one container, and a [Gate] is what they make of it: the startup
// probe gates the others, readiness says whether it may take traffic, liveness
// whether it is to be restarted.
//
//	m := health.NewMonitor(health.Options{})
//	go m.Run(ctx)
//	w, err := m.Watch(health.Target{ID: "web.1", Address: addr}, health.Probes{
//		Readiness: &health.Check{HTTP: &health.HTTP{Port: 80, Path: "/ready"}},
//		Liveness:  &health.Check{TCP: &health.TCP{Port: 80}},
//	}, health.Events{
//		Ready: func(ready bool, reason error) { ... },
//		Dead:  func(probe health.Probe, reason error) { ... },
//	})
//	defer w.Stop()
//
// One check alone is watched by [Monitor.Add] and reported to Options.Report.
//
// Checkers for HTTP, TCP and commands are here; the one for gRPC is in
// health/grpc. An application registers its own in Options.Checkers and names
// them in [Custom] checks; health/healthtest is the suite for them.
//
// A target is unknown until Successes probes in a row succeeded or Failures in
// a row failed, and changes when as many speak against what it is. A probe
// that does not answer within its Timeout has failed.
package health
