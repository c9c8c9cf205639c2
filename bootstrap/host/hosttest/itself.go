package hosttest

import (
	"io/fs"
	"path"
)

// What a machine does by itself, or what befalls it: none of it counts as an
// operation, and it happens whether or not the connection stands.

// Otherwise has f answer the commands that Script does not name. f is called for
// each and says false to one that it does not know either; it must not change
// anything itself, that is its answer's Do.
func (s *Sim) Otherwise(f func(argv []string) (Answer, bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.otherwise = f
}

// Cut ends the connection now, as CutAt does at an operation.
func (s *Sim) Cut() { s.leave("connection to %s lost", false) }

// Kill takes the host's power now, as KillAt does at an operation.
func (s *Sim) Kill() { s.leave("%s lost its power", true) }

func (s *Sim) leave(how string, power bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = s.dead || power
	if s.gone == nil {
		s.gone = unreachable(how, s.name)
	}
}

// Powered tells whether the machine runs.
func (s *Sim) Powered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.dead
}

// PID is the main process of a unit, 0 if it has none or the machine has no power.
func (s *Sim) PID(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, ok := s.units[name]
	if !ok || s.dead || u.active != active {
		return 0
	}
	return u.pid
}

// Get returns a file's content, and whether there is such a file. Links are followed.
func (s *Sim) Get(name string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.find(name, true)
	if err != nil || n.isDir() {
		return "", false
	}
	return string(n.content), true
}

// List returns the names in a directory, sorted; none if there is no such directory.
func (s *Sim) List(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.find(name, true)
	if err != nil {
		return nil
	}
	return sortedNames(n)
}

// PutDir sets up a directory of root's with its parents; one that is there gets the mode.
func (s *Sim) PutDir(name string, perm fs.FileMode) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.mkdirAll(name)
	if err != nil {
		s.t.Fatalf("set up %s: %v", name, err)
	}
	n.mode = fs.ModeDir | perm
}

// Drop removes a path and all below it; one that is absent is no error.
func (s *Sim) Drop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if dir, base, err := s.locate(path.Clean(name), false); err == nil {
		delete(dir.children, base)
	}
}
