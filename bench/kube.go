//go:build kube

package main

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	kube "k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

// kubeScheduler decides each pod as kube-scheduler does, with its default
// profile, but for its queue and for binding, which talks to the API server:
// snapshot, filters, scores, and the choice assumed in the cache. That is less
// than kube-scheduler does in the field, so its times here are in its favour.
// It samples nodes by its own default, and what its signatures of pods let it
// reuse it reuses. Nodes have resources in every load: it wants them.
var kubeScheduler = contender{
	name:   "kube-scheduler, deciding only",
	run:    runKube,
	cannot: func(l load) bool { return l.tasks > 1e4 }, // minutes
	once:   true,
}

var otherPeers = []contender{kubeScheduler}

func runKube(l load) (sample, error) {
	klog.SetLogger(klog.Logger{}) // drops everything
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client := fake.NewClientset()
	recorder := func(string) events.EventRecorderLogger { return events.NewFakeRecorder(1) }
	snapshot := cache.NewEmptySnapshot()
	sched, err := kube.New(ctx, client, informers.NewSharedInformerFactory(client, 0), nil, recorder,
		kube.WithNodeInfoSnapshot(snapshot))
	if err != nil {
		return sample{}, err
	}
	profile := sched.Profiles[v1.DefaultSchedulerName]
	logger := klog.Background()
	for i := range l.nodes {
		sched.Cache.AddNode(logger, kubeNode(l, i))
	}
	pods := make([]*framework.QueuedPodInfo, 0, l.tasks)
	service := make([]int, 0, l.tasks)
	for i := range l.services() {
		for k := range l.replicas(i) {
			pod := kubePod(l, i, k)
			info, err := framework.NewPodInfo(pod)
			if err != nil {
				return sample{}, err
			}
			pods = append(pods, &framework.QueuedPodInfo{PodInfo: info, PodSignature: profile.SignPod(ctx, pod)})
			service = append(service, i)
		}
	}
	before := live()
	places := make([]placement, 0, l.tasks)
	m := timed(func() {
		for i, pod := range pods {
			var host string
			if host, err = kubeDecide(ctx, sched, snapshot, pod); err != nil {
				return
			}
			j, bad := nodeIndex(host)
			if bad != nil {
				err = bad
				return
			}
			places = append(places, placement{service[i], j})
		}
	})
	if err != nil {
		return sample{}, err
	}
	m.strict = m.whole
	err = l.check(places)
	m.kept = live() - before
	runtime.KeepAlive(sched)
	runtime.KeepAlive(pods)
	return m, err
}

// kubeDecide is one scheduling cycle.
func kubeDecide(ctx context.Context, sched *kube.Scheduler, snapshot *cache.Snapshot, info *framework.QueuedPodInfo) (string, error) {
	logger := klog.FromContext(ctx)
	if err := sched.Cache.UpdateSnapshot(logger, snapshot); err != nil {
		return "", err
	}
	fw := sched.Profiles[v1.DefaultSchedulerName]
	result, err := sched.SchedulePod(ctx, fw, framework.NewCycleState(), info)
	if err != nil {
		return "", err
	}
	assumed := info.Pod.DeepCopy()
	assumed.Spec.NodeName = result.SuggestedHost
	return result.SuggestedHost, sched.Cache.AssumePod(logger, assumed)
}

func kubeNode(l load, i int) *v1.Node {
	n := &v1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: nodeName(i), UID: types.UID(nodeName(i)),
			Labels: map[string]string{"kubernetes.io/hostname": nodeName(i), "zone": zone(i), "disk": disk(i)},
		},
		Status: v1.NodeStatus{
			Allocatable: v1.ResourceList{
				v1.ResourceCPU:    *resource.NewMilliQuantity(nodeMilliCPU, resource.DecimalSI),
				v1.ResourceMemory: *resource.NewQuantity(nodeMemory, resource.BinarySI),
				v1.ResourcePods:   *resource.NewQuantity(1<<20, resource.DecimalSI),
			},
			Conditions: []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(time.Unix(0, 0))}},
		},
	}
	n.Status.Capacity = n.Status.Allocatable
	if hasDriver(i) {
		n.Labels["driver"] = driver
	}
	return n
}

func kubePod(l load, i, k int) *v1.Pod {
	app := "service-" + strconv.Itoa(i)
	name := fmt.Sprintf("%s-%d", app, k)
	p := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), Labels: map[string]string{"app": app}},
		Spec: v1.PodSpec{
			SchedulerName: v1.DefaultSchedulerName,
			Containers:    []v1.Container{{Name: "main", Image: "image"}},
		},
	}
	if cpu, memory := l.size(i); cpu > 0 {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{
			v1.ResourceCPU:    *resource.NewMilliQuantity(cpu, resource.DecimalSI),
			v1.ResourceMemory: *resource.NewQuantity(memory, resource.BinarySI),
		}
	}
	switch {
	case l.kind == constrained:
		p.Spec.NodeSelector = map[string]string{"driver": driver}
	case l.kind == mixed:
		p.Spec.TopologySpreadConstraints = []v1.TopologySpreadConstraint{{
			MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: v1.ScheduleAnyway,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
		}}
		if wantsSSD(i) {
			p.Spec.NodeSelector = map[string]string{"disk": "ssd"}
		}
	}
	return p
}
