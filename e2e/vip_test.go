package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kubewright/kubewright/lab"
)

const (
	// longestMove is how long people may be without the API when the virtual IP's host dies. It
	// takes 5 to 8 s; the hosts of the lab share two cores.
	longestMove = 15 * time.Second
	vipUnit     = "kubewright-vip"
)

// TestVirtualIP has people reach the API by a virtual IP: it moves when its holder loses its power,
// and is not taken from another machine that has it.
func TestVirtualIP(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "vip", Hosts: 4})
	hosts, foreigner := []string{e.host(1), e.host(2), e.host(3)}, e.host(4)
	subnet := e.lab.Gateway().As4()
	subnet[3] = 200
	v := &virtual{env: e, address: netip.AddrFrom4(subnet), hosts: hosts}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(v.logs())
		}
	})
	before := e.inventories(t, hosts)
	e.must(t, "init", "-f", e.spec(t, fmt.Sprintf("controlPlaneEndpoint: {virtualIP: %s}\nhosts:\n- {name: %s, role: control-plane}\n- {name: %s, role: control-plane}\n- {name: %s, role: control-plane}\n",
		v.address, hosts[0], hosts[1], hosts[2])))
	e.allReady(t, hosts) // through the virtual IP
	if server := e.kubectl(t, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"); server != "https://"+v.address.String()+":6443" {
		t.Errorf("the kubeconfig leads to %s", server)
	}

	t.Run("its holder's power is cut", func(t *testing.T) {
		for range 2 {
			v.dies(t)
		}
	})
	t.Run("another machine has it, too", func(t *testing.T) {
		holder := v.holder(t)
		hardware := e.on(t, foreigner, "cat", "/sys/class/net/eth0/address")
		e.on(t, foreigner, "ip", "address", "add", v.address.String()+"/32", "dev", "eth0")
		v.says(t, holder, "another machine has the virtual IP as well", hardware)
		v.doctor(t, holder, true)

		e.on(t, holder, "systemctl", "stop", vipUnit)
		next := ""
		eventually(t, 10*time.Second, "another host is elected", func() string {
			next = e.lease(t, hosts[0])
			if next == "" || next == holder {
				return "the Lease is " + next + "'s"
			}
			return ""
		})
		v.says(t, next, "another machine has the virtual IP: this host does not take it", hardware)
		if have := v.holders(t); len(have) > 0 {
			t.Errorf("%s took it from another machine", have)
		}
		v.doctor(t, next, true)
		e.on(t, foreigner, "ip", "address", "del", v.address.String()+"/32", "dev", "eth0")
		v.moves(t, 30*time.Second, holder)
		v.doctor(t, next, false)
		e.on(t, holder, "systemctl", "start", vipUnit)
		if now := v.holder(t); now != next {
			t.Errorf("%s has it, not %s", now, next)
		}
	})
	t.Run("reset takes it away", func(t *testing.T) {
		e.must(t, append([]string{"reset"}, hosts...)...)
		if have := v.holders(t); len(have) > 0 {
			t.Errorf("%s still has it", have)
		}
		e.same(t, before, hosts)
	})
}

// virtual is the virtual IP of control-plane hosts.
type virtual struct {
	*env
	address netip.Addr
	hosts   []string
}

// holders are the hosts that have the address; one without power has none.
func (v *virtual) holders(t *testing.T) []string {
	t.Helper()
	var have []string
	for _, h := range v.lab.Hosts() {
		if h.Running && h.Name != v.host(4) && v.on(t, h.Name, "ip", "-4", "-o", "address", "show", "to", v.address.String()+"/32") != "" {
			have = append(have, h.Name)
		}
	}
	return have
}

// holder is the one host that has it.
func (v *virtual) holder(t *testing.T) string {
	t.Helper()
	have := v.holders(t)
	if len(have) != 1 {
		t.Fatalf("%v have the virtual IP", have)
	}
	return have[0]
}

// moves waits until another host than before has it, and returns which.
func (v *virtual) moves(t *testing.T, within time.Duration, before string) string {
	t.Helper()
	var have []string
	eventually(t, within, "another host has the virtual IP", func() string {
		have = v.holders(t)
		if len(have) != 1 || have[0] == before {
			return fmt.Sprintf("%v have it", have)
		}
		return ""
	})
	return have[0]
}

// dies cuts the holder's power while a client writes through the address, and has it come back.
func (v *virtual) dies(t *testing.T) {
	t.Helper()
	victim := v.holder(t)
	w := v.write(t)
	w.awaits(t, 20)
	if err := v.lab.Kill(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	next := v.moves(t, longestMove, victim)
	w.awaits(t, w.count()+20)
	lost, outage := w.end(t)
	t.Logf("the virtual IP of %s is on %s: writes out %d ms, %d acknowledged, %d lost", victim, next, outage.Milliseconds(), w.count(), len(lost))
	if outage > longestMove {
		t.Errorf("the API was away for %s", outage)
	}
	if len(lost) > 0 {
		t.Errorf("acknowledged writes lost: %v", lost)
	}
	v.powerOn(t, victim)
	eventually(t, time.Minute, victim+" stands for election again", func() string { return v.status(t, victim, "stands for election") })
	eventually(t, time.Minute, "all members are healthy", func() string { return v.kubewright(t, "etcd", "health").stderr })
	if now := v.holder(t); now != next {
		t.Errorf("%s has it now, not %s", now, next)
	}
}

// status is "" if the unit says the words of itself, else what it says.
func (v *virtual) status(t *testing.T, host string, words ...string) string {
	t.Helper()
	says := v.on(t, host, "systemctl", "show", vipUnit, "--property", "StatusText", "--value")
	for _, w := range words {
		if !strings.Contains(says, w) {
			return "it says: " + says
		}
	}
	return ""
}

// says waits until the unit's log has the words in one line, and its status, too.
func (v *virtual) says(t *testing.T, host string, words ...string) {
	t.Helper()
	eventually(t, 20*time.Second, host+" says that another machine has the virtual IP", func() string { return v.status(t, host, words...) })
	log := v.on(t, host, "journalctl", "-u", vipUnit, "-o", "cat", "--no-pager")
	for line := range strings.Lines(log) {
		told := 0
		for _, w := range words {
			if strings.Contains(line, w) {
				told++
			}
		}
		if told == len(words) {
			return
		}
	}
	t.Errorf("%s does not log %q:\n%s", host, words, log)
}

// doctor wants the conflict to be found on a host, or not.
func (v *virtual) doctor(t *testing.T, host string, conflict bool) {
	t.Helper()
	found, _ := v.env.doctor(t, v.hosts...)
	told := false
	for _, a := range found {
		told = told || a.Code == "virtual-ip-conflict" && a.Host == host
	}
	if told != conflict {
		t.Errorf("doctor tells of a conflict on %s: %t\n%v", host, told, found)
	}
}

// lease is who is elected, asked on a host: the address may lead nowhere.
func (e *env) lease(t *testing.T, host string) string {
	t.Helper()
	return e.on(t, host, "/opt/kubewright/current/bin/kubectl", "--kubeconfig=/etc/kubernetes/admin.conf",
		"--server=https://127.0.0.1:6443", "-n", "kube-system", "get", "lease", "kubewright-virtual-ip", "-o", "jsonpath={.spec.holderIdentity}")
}

func (v *virtual) logs() string {
	var all strings.Builder
	for _, h := range v.lab.Hosts() {
		if h.Running {
			_, _ = v.lab.Exec(context.Background(), h.Name, []string{"journalctl", "-u", vipUnit, "-o", "short-precise", "--no-pager"}, nil, &all, &all)
		}
	}
	return all.String()
}

// writer makes objects through the virtual IP, ten a second, each over a connection of its own, as
// kubectl does.
type writer struct {
	kube    kubernetes.Interface
	prefix  string
	stop    context.CancelFunc
	stopped chan struct{}

	mu           sync.Mutex
	acknowledged []string
	last         time.Time // that one was
	outage       time.Duration
}

func (v *virtual) write(t *testing.T) *writer {
	t.Helper()
	access, err := clientcmd.BuildConfigFromFlags("", v.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	tls, err := rest.TLSConfigFor(access)
	if err != nil {
		t.Fatal(err)
	}
	kube, err := kubernetes.NewForConfigAndClient(access, &http.Client{
		Timeout: time.Second, Transport: &http.Transport{TLSClientConfig: tls, DisableKeepAlives: true}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	w := &writer{kube: kube, prefix: "w" + strconv.FormatInt(time.Now().Unix(), 36) + "-", stop: stop, stopped: make(chan struct{}), last: time.Now()}
	go w.work(ctx)
	return w
}

func (w *writer) work(ctx context.Context) {
	defer close(w.stopped)
	pace := time.NewTicker(100 * time.Millisecond)
	defer pace.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		name := w.prefix + strconv.Itoa(n)
		_, err := w.kube.CoreV1().ConfigMaps(metav1.NamespaceDefault).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err == nil {
			w.mu.Lock()
			w.acknowledged = append(w.acknowledged, name)
			w.outage = max(w.outage, time.Since(w.last))
			w.last = time.Now()
			w.mu.Unlock()
		}
		select {
		case <-pace.C:
		case <-ctx.Done():
		}
	}
}

// count is how many writes were acknowledged.
func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acknowledged)
}

func (w *writer) awaits(t *testing.T, n int) {
	t.Helper()
	eventually(t, 2*longestMove, "writes are acknowledged", func() string {
		if has := w.count(); has < n {
			return fmt.Sprintf("%d of %d", has, n)
		}
		return ""
	})
}

// end stops it, and returns the acknowledged writes that are not there, and the longest time
// between two that were acknowledged.
func (w *writer) end(t *testing.T) (lost []string, outage time.Duration) {
	t.Helper()
	w.stop()
	<-w.stopped
	all, err := w.kube.CoreV1().ConfigMaps(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, m := range all.Items {
		there[m.Name] = true
	}
	for _, name := range w.acknowledged {
		if !there[name] {
			lost = append(lost, name)
		}
	}
	return lost, w.outage
}
