package orchestrate_test

import (
	"fmt"

	"github.com/orchestrate-go/orchestrate"
)

// The order of objects in an Apply does not matter: each waits for what it
// depends on. The migration begins once the database is healthy, and each new
// revision of the service once the migration has completed.
func ExampleDependency() {
	image := func(name string) orchestrate.Template {
		return orchestrate.Template{Containers: []orchestrate.Container{{Image: name}}}
	}
	web := orchestrate.Service{Name: "web", Template: image("web:1"), DependsOn: []orchestrate.Dependency{{Job: "migrate"}, {Service: "infra/cache"}}}
	migrate := orchestrate.Job{Name: "migrate", Template: image("migrate:1"), DependsOn: []orchestrate.Dependency{{Service: "db"}}}
	for _, d := range web.WithDefaults().DependsOn {
		fmt.Println(d.Service+d.Job, d.Condition)
	}
	fmt.Println(web.Validate(), migrate.Validate())

	web.DependsOn = append(web.DependsOn, orchestrate.Dependency{Service: "web"})
	fmt.Println(web.Validate())
	// Output:
	// migrate completed
	// infra/cache healthy
	// <nil> <nil>
	// service "default/web": dependsOn[2].service: "web" is what depends on it: it would wait for itself; remove it
}
