package orchestrate

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
)

// decodesSoundly checks what holds of each decoder of specs: what it refuses it
// names, and what it takes is valid, and reads the same when it is written.
func decodesSoundly[T Object](t *testing.T, data []byte, decode func([]byte) (T, error)) {
	t.Helper()
	object, err := decode(data)
	if err != nil {
		var invalid *ValidationError
		if !errors.As(err, &invalid) || len(invalid.Problems) == 0 {
			t.Fatalf("got %#v, want a *ValidationError with problems", err)
		}
		_ = err.Error()
		return
	}
	if err := object.Validate(); err != nil {
		t.Fatalf("accepted, but %v", err)
	}
	written, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	again, err := decode(written)
	if err != nil {
		t.Fatalf("%s is written as\n%s\nwhich is refused: %v", data, written, err)
	}
	if !reflect.DeepEqual(object, again) {
		t.Fatalf("%s is read as\n%+v\nand again as\n%+v", data, object, again)
	}
}

var jobSeeds = []Job{
	{Name: "j", Template: Template{Containers: []Container{{Image: "work:1"}}}},
	{
		Name: "j", Namespace: "n", Completions: 100, Parallelism: 7, Gang: true, Retries: None, Enough: 50, TTL: 3600e9,
		Exits:     []ExitRule{{Codes: []int{1, 255}, Action: ExitFailJob}, {Action: ExitIgnore}},
		DependsOn: []Dependency{{Service: "db"}, {Job: "m/migrate"}},
		Template:  Template{Containers: []Container{{Image: "work:1", Env: map[string]string{"A": "b"}}}},
	},
	{Name: "J", Completions: -1, Template: Template{Ports: []Port{{Port: 80}}}},
}

func FuzzDecodeJob(f *testing.F) {
	for _, j := range jobSeeds {
		data, err := json.Marshal(j)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { decodesSoundly(t, data, DecodeJob) })
}

func FuzzDecodeCronJob(f *testing.F) {
	for _, j := range jobSeeds {
		data, err := json.Marshal(CronJob{Name: "c", Schedule: "*/5 * * * *", TimeZone: "Europe/Berlin", Job: j})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { decodesSoundly(t, data, DecodeCronJob) })
}
