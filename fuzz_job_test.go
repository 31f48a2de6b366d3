package orchestrate

import (
	"encoding/json"
	"testing"
)

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
