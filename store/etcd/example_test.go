package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/orchestrate-go/orchestrate/store/etcd"
)

// A store opens while its servers are down, and says so when it is used.
func ExampleOpen() {
	s, err := etcd.Open(etcd.Options{
		Endpoints: []string{"http://127.0.0.1:1"}, // nobody is there
		Prefix:    "/fleets/staging",
		Timeout:   200 * time.Millisecond,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	_, err = s.List(context.Background(), "/services/")
	fmt.Println(errors.Is(err, etcd.ErrUnavailable))

	_, err = etcd.Open(etcd.Options{Endpoints: []string{"http://10.0.0.1:2379"}})
	fmt.Println(err)
	// Output:
	// true
	// etcd: option Endpoints[0] is "http://10.0.0.1:2379"; want https: without TLS only loopback and unix sockets
}
