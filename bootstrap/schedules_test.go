package bootstrap

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
)

var (
	seedFlag      = flag.Uint64("seed", 0, "try the schedule of this seed alone (TestSchedules)")
	schedulesFlag = flag.Int("schedules", 100, "how many schedules are tried (TestSchedules)")
	pointsFlag    = flag.Int("points", 16, "how many interruptions of each verb are tried; 0: each before, in and after each operation (TestEveryPoint)")
	pointFlag     = flag.String("point", "", `try this interruption alone, as "kill in 17" (TestEveryPoint)`)
)

// TestMain trades memory for time: worlds are made and thrown away by the thousand.
func TestMain(m *testing.M) {
	const gcPercent = 400
	debug.SetGCPercent(gcPercent)
	os.Exit(m.Run())
}

// stage is a command line that is broken off, each time by a cut, and then run to
// its end, unless it is left at that.
type stage struct {
	verb  verb
	cuts  []cut
	leave bool // it is not run to its end
}

func (s stage) String() string {
	text := fmt.Sprintf("%v %v", s.verb, s.cuts)
	if s.leave {
		text += " and no more"
	}
	return text
}

// bubble runs f with a new world in a bubble of its own.
func bubble(t *testing.T, seed uint64, b *bundle.Bundle, dir string, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t, seed, b, dir)) })
}

// play does the stages, and returns how many of the cuts befell a run.
func (w *world) play(stages []stage) (befell int, err error) {
	for _, s := range stages {
		for _, c := range s.cuts {
			_, err := w.run(s.verb, c)
			if len(w.broken) > 0 {
				return befell, fmt.Errorf("%v, broken off by %v: %s", s.verb, c, strings.Join(w.broken, "; "))
			}
			if w.count >= c.operation {
				befell++
			}
			if err != nil && w.count < c.operation {
				return befell, fmt.Errorf("%v, not broken off: %w", s.verb, err)
			}
		}
		if s.leave {
			continue
		}
		if _, err := w.run(s.verb); err != nil {
			return befell, fmt.Errorf("%v: %w", s.verb, err)
		}
		if len(w.broken) > 0 {
			return befell, fmt.Errorf("%v: %s", s.verb, strings.Join(w.broken, "; "))
		}
	}
	return befell, nil
}

// steady is the picture of the world at rest, after one more run of the last verb,
// which must find nothing to change: only it can tell that keys and certificates fit.
func (w *world) steady(v verb) (picture, error) {
	w.rest()
	before := len(w.log)
	n, err := w.run(v)
	if err != nil {
		return nil, fmt.Errorf("%v once more: %w", v, err)
	}
	if done := w.log[before+1:]; n.Applied != 0 || len(done) > 0 {
		return nil, fmt.Errorf("%v once more: %d steps applied\n%s", v, n.Applied, tail(done))
	}
	w.rest()
	if len(w.broken) > 0 {
		return nil, fmt.Errorf("%v, at rest: %s", v, strings.Join(w.broken, "; "))
	}
	return w.picture(), nil
}

// outcome plays stages in a new world, and compares what stands there then with want.
// An error tells all that happened.
func outcome(t *testing.T, seed uint64, b *bundle.Bundle, dir string, stages []stage, want picture) (befell int, err error) {
	t.Helper()
	bubble(t, seed, b, dir, func(_ *testing.T, w *world) {
		var got picture
		if befell, err = w.play(stages); err == nil {
			got, err = w.steady(stages[len(stages)-1].verb)
		}
		if diff := want.diff(got); err == nil && len(diff) > 0 {
			err = fmt.Errorf("another end:\n%s", strings.Join(diff, "\n"))
		}
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, tail(w.log))
		}
	})
	return befell, err
}

// stagesOf are the verbs, each run once.
func stagesOf(verbs []verb) []stage {
	stages := make([]stage, len(verbs))
	for i, v := range verbs {
		stages[i].verb = v
	}
	return stages
}

// undisturbed plays stages without their cuts, and returns the picture then, and
// how many operations the last one took.
func undisturbed(t *testing.T, b *bundle.Bundle, seed uint64, verbs ...verb) (want picture, operations int) {
	t.Helper()
	bubble(t, seed, b, t.TempDir(), func(t *testing.T, w *world) {
		bare := w.picture()
		if _, err := w.play(stagesOf(verbs)); err != nil {
			t.Fatalf("%v\n%s", err, tail(w.log))
		}
		operations = w.count
		last := verbs[len(verbs)-1]
		var err error
		if want, err = w.steady(last); err != nil {
			t.Fatalf("%v\n%s", err, tail(w.log))
		}
		if last.destroys() {
			if diff := bare.diff(want); len(diff) > 0 {
				t.Fatalf("a reset leaves:\n%s", strings.Join(diff, "\n"))
			}
		}
	})
	return want, operations
}

// TestEveryPoint breaks each verb off before, in and after each of its operations, by
// the end of the program, of the connection and of the host's power, and runs it again:
// the end is that of a run that nobody disturbed.
func TestEveryPoint(t *testing.T) {
	b := testBundle(t)
	const seed = 1
	for name, c := range map[string]struct {
		verbs []verb
		// square has each operation tried at each moment, but by one kind of interruption a time, in turn: what the verb
		// does beyond those that are tried in full is the same on several hosts.
		square bool
	}{
		"init":            {verbs: []verb{initAll}},
		"join":            {verbs: []verb{initOne, joinTwo}},
		"reset-worker":    {verbs: []verb{initAll, resetWorker}},
		"reset":           {verbs: []verb{initAll, resetAll}},
		"rejoin":          {verbs: []verb{initAll, resetWorker, joinWorker}, square: true},
		"init-three":      {verbs: []verb{initThree}, square: true},
		"join-members":    {verbs: []verb{initOne, joinMembers}, square: true},
		"remove-first":    {verbs: []verb{initThree, removeFirst}, square: true},
		"remove-other":    {verbs: []verb{initThree, removeOther}, square: true},
		"remove-worker":   {verbs: []verb{initThree, removeNode}, square: true},
		"remove-dead":     {verbs: []verb{initThree, removeDead}},
		"join-first":      {verbs: []verb{initThree, removeFirst, joinFirst}, square: true},
		"change-three":    {verbs: []verb{initThree, initChanged}, square: true},
		"reset-three":     {verbs: []verb{initThree, resetThree}, square: true},
		"restore":         {verbs: []verb{initThree, takeBackup, reinstallThree, restoreSame}, square: true},
		"restore-new":     {verbs: []verb{initTwo, takeBackup, loseFirst, restoreNew}, square: true},
		"recover":         {verbs: []verb{initThree, loseTwo, recoverFirst}},
		"reset-restored":  {verbs: []verb{initThree, takeBackup, reinstallThree, restoreSame, resetThree}, square: true},
		"reset-recovered": {verbs: []verb{initThree, loseTwo, recoverFirst, returnTwo, resetThree}, square: true},
	} {
		verbs := c.verbs
		t.Run(name, func(t *testing.T) {
			want, operations := undisturbed(t, b, seed, verbs...)
			var cuts []cut
			for n := 1; n <= operations; n++ {
				for _, m := range []hosttest.Moment{hosttest.Before, hosttest.In, hosttest.After} {
					for _, k := range []kind{killed, severed, unplugged} {
						at := cut{operation: n, moment: m, kind: k}
						if *pointFlag == "" && (!c.square || int(k) == (n+int(m))%3) || *pointFlag == at.String() {
							cuts = append(cuts, at)
						}
					}
				}
			}
			cuts = spread(cuts, *pointsFlag)
			t.Cleanup(func() { t.Logf("%d operations, %d interruption points tried", operations, len(cuts)) })
			perProcessor(t, len(cuts), func(t *testing.T, dir string, i int) {
				c := cuts[i]
				stages := stagesOf(verbs)
				stages[len(stages)-1].cuts = []cut{c}
				befell, err := outcome(t, seed, b, dir, stages, want)
				if err == nil && befell != 1 {
					err = fmt.Errorf("this time there was no such operation")
				}
				if err != nil {
					t.Errorf("%v: go test ./bootstrap -run 'TestEveryPoint/%s$' -point %q\n%v", stages, name, c.String(), err)
				}
			})
		})
	}
}

// spread picks n of all, evenly, or all of them if n is 0.
func spread(all []cut, n int) []cut {
	if n == 0 || n >= len(all) {
		return all
	}
	some := make([]cut, n)
	for i := range some {
		some[i] = all[i*len(all)/n]
	}
	return some
}

// schedule is what a seed makes of it: a story of verbs, broken off up to three times
// each, at any time, by anything.
func schedule(seed uint64) []stage {
	r := rand.New(rand.NewPCG(seed, 0))
	stories := [][]verb{
		{initAll}, {initOne, joinTwo}, {initAll, resetWorker}, {initAll, resetAll}, {initOne, joinTwo, resetAll},
		{initAll, resetWorker, joinWorker}, {initAll, resetAll, initAll},
		{initThree}, {initThree, initOther}, {initThree, initChanged}, {initOne, joinMembers}, {initOne, joinMembers, resetThree}, {initThree, resetThree},
		{initThree, resetThree, initThree}, {initThree, removeFirst, joinFirst}, {initThree, removeOther}, {initThree, removeNode},
		{initThree, removeDead}, {initThree, removeDead, resetSecond},
		{initThree, takeBackup, reinstallThree, restoreSame}, {initThree, takeBackup, reinstallThree, restoreSame, restoreOther},
		{initThree, takeBackup, reinstallThree, restoreSame, resetThree}, {initTwo, takeBackup, loseFirst, restoreNew},
		{initThree, takeBackup, loseTwo, reinstallFirst, restoreFirst, returnTwo, resetThree},
		{initThree, loseTwo, recoverFirst}, {initThree, loseTwo, recoverFirst, returnTwo, resetThree},
		{initThree, loseTwo, recoverFirst, removeLost, reinstallTwo, joinLost, initChanged},
	}
	var stages []stage
	story := stories[r.IntN(len(stories))]
	for i, v := range story {
		s := stage{verb: v}
		if v.event() {
			stages = append(stages, s)
			continue
		}
		most := v.operations()
		for range r.IntN(4) {
			c := cut{operation: 1 + r.IntN(most), moment: hosttest.Moment(r.IntN(3)), kind: kind(r.IntN(3))}
			if r.IntN(3) == 0 {
				c.victim = v.hosts[r.IntN(len(v.hosts))]
			}
			s.cuts = append(s.cuts, c)
		}
		// An admin may give up half-way, and take everything back, or put it in another way.
		next := i+1 < len(story) && (story[i+1].destroys() || story[i+1].name == v.name && (v.name == "init" || v.name == "restore"))
		s.leave = next && len(s.cuts) > 0 && r.IntN(2) == 0
		stages = append(stages, s)
	}
	return stages
}

// TestSchedules plays stories of several verbs that are broken off several times. The
// end is that of the same verbs undisturbed.
func TestSchedules(t *testing.T) {
	b := testBundle(t)
	seeds := make([]uint64, *schedulesFlag)
	for i := range seeds {
		seeds[i] = uint64(i + 1)
	}
	if *seedFlag != 0 {
		seeds = []uint64{*seedFlag}
	}
	ends := map[string]picture{} // by story
	for _, seed := range seeds {
		if key, verbs := ending(schedule(seed)); ends[key] == nil {
			ends[key], _ = undisturbed(t, b, 1, verbs...)
		}
	}
	var interruptions atomic.Int64
	t.Cleanup(func() { t.Logf("%d schedules, %d interruptions", len(seeds), interruptions.Load()) })
	perProcessor(t, len(seeds), func(t *testing.T, dir string, i int) {
		seed := seeds[i]
		stages := schedule(seed)
		key, _ := ending(stages)
		befell, err := outcome(t, seed, b, dir, stages, ends[key])
		interruptions.Add(int64(befell))
		if err != nil {
			t.Errorf("%v: go test ./bootstrap -run TestSchedules -seed %d\n%v", stages, seed, err)
		}
	})
}

// ending are the verbs of a story, and a key for it.
func ending(stages []stage) (string, []verb) {
	verbs := make([]verb, len(stages))
	for i, s := range stages {
		verbs[i] = s.verb
	}
	return fmt.Sprint(verbs), verbs
}

// TestScheduleReplays plays one schedule twice: what happens is the same to the letter.
func TestScheduleReplays(t *testing.T) {
	b := testBundle(t)
	for seed := range uint64(20) {
		var logs [2][]string
		for i := range logs {
			bubble(t, seed, b, t.TempDir(), func(t *testing.T, w *world) {
				if _, err := w.play(schedule(seed)); err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
				logs[i] = w.log
			})
		}
		if !slices.Equal(logs[0], logs[1]) {
			t.Errorf("seed %d: once\n%s\nand once\n%s", seed, tail(logs[0]), tail(logs[1]))
		}
	}
}

// TestApplyRemoves takes hosts out of the file: the end is that of `remove`.
func TestApplyRemoves(t *testing.T) {
	b := testBundle(t)
	for name, c := range map[string]struct{ init, apply, remove verb }{
		"a worker":                     {initAll, verb{name: "apply", hosts: []int{1, 2}, controls: 1}, resetWorker},
		"the first control-plane host": {initThree, verb{name: "apply", hosts: []int{2, 3, 4}, controls: 2}, removeFirst},
	} {
		t.Run(name, func(t *testing.T) {
			want, _ := undisturbed(t, b, 1, c.init, c.remove)
			got, _ := undisturbed(t, b, 1, c.init, c.apply)
			if diff := want.diff(got); len(diff) > 0 {
				t.Errorf("another end:\n%s", strings.Join(diff, "\n"))
			}
		})
	}
}
