//go:build linux

package local

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate"
)

// say sends a datagram and returns the answer.
func say(address string) (string, error) {
	c, err := net.DialTimeout("udp", address, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte{0}); err != nil {
		return "", err
	}
	buf := make([]byte, 200)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// UDP has the virtual address, names and published ports as TCP has, and ports of
// its own.
func TestUDP(t *testing.T) {
	f := openFleet(t)
	s := service("web", 2)
	s.Ports = []orchestrate.Port{
		{Port: 8080, Virtual: 80, Published: 8081},
		{Port: 8080, Virtual: 80, Published: 8081, Protocol: orchestrate.UDP},
	}
	up(t, f, s)
	addresses := []string{"127.0.0.1:8081", "[::1]:8081", at(hostIPv4.Addr(), 8081), at(hostIPv6.Addr(), 8081)}
	for _, a := range virtual(t, f, "web") {
		addresses = append(addresses, at(a, 80))
	}
	for _, address := range addresses {
		got := map[string]bool{}
		for range 40 {
			who, err := say(address)
			if err != nil {
				t.Fatalf("%s by UDP: %v", address, err)
			}
			got[who] = true
		}
		for _, task := range tasks(t, f, "web") {
			if !got[task.ID] {
				t.Errorf("%s was answered by %v, want also %s", address, got, task.ID)
			}
		}
		get(t, address, "/")
	}
	// The port of the other protocol is another's to have, the same is not.
	s.Name, s.Ports = "other", s.Ports[1:]
	var taken *orchestrate.PortError
	if err := f.Apply(t.Context(), s); !errors.As(err, &taken) || taken.Protocol != orchestrate.UDP {
		t.Errorf("a UDP port that web has: got %v, want a PortError", err)
	}
	web := service("web", 2)
	web.Ports[0].Published = 8081
	up(t, f, web)
	up(t, f, s)
	if who, err := say("127.0.0.1:8081"); err != nil {
		t.Errorf("UDP port of the other service: %v", err)
	} else if n := len(tasks(t, f, "other")); n != 2 || tasks(t, f, "other")[0].ID != who && tasks(t, f, "other")[1].ID != who {
		t.Errorf("UDP port of the other service: answered by %s, want one of its tasks", who)
	}
}

// A network may have IPv6 alone, and serves everywhere that IPv6 leads.
func TestIPv6Alone(t *testing.T) {
	f := openFleet(t)
	subnet := netip.MustParsePrefix("fd00:66::/64")
	s := service("web", 2)
	s.Networks, s.Ports[0].Published = []string{"six"}, 8081
	client := service("client", 1)
	client.Networks = []string{"six"}
	apply(t, f, orchestrate.Network{Name: "six", Subnets: []string{subnet.String()}}, s, client)
	completed(t, f, "web")
	completed(t, f, "client")
	st, err := f.Get(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	virtual := st.Addresses["six"]
	if len(virtual) != 1 || !virtual[0].Is6() {
		t.Fatalf("virtual addresses: got %v, want one of IPv6", virtual)
	}
	for _, task := range tasks(t, f, "web") {
		if a := task.Addresses["six"]; len(a) != 1 || !subnet.Contains(a[0]) {
			t.Errorf("addresses of %s: got %v, want one of %s", task.ID, a, subnet)
		}
	}
	for _, address := range []string{at(virtual[0], 80), "[::1]:8081", at(hostIPv6.Addr(), 8081)} {
		if counts := answers(t, address, 40); len(counts) != 2 {
			t.Errorf("%s was answered by %v, want both tasks", address, counts)
		}
	}
	inside := at(one(t, f, "client").Addresses["six"][0], 8080)
	if got := get(t, inside, "/lookup?web"); got != virtual[0].String() {
		t.Errorf("the name from inside: got %s, want %s", got, virtual[0])
	}
	get(t, inside, "/fetch?http://web/")
	if got, err := ask("127.0.0.1:8081", "/"); err == nil {
		t.Errorf("the published port by IPv4: answered by %q, want it refused: no task has IPv4", got)
	}
}
