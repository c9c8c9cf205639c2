package plan

import (
	"fmt"
	"sync"
)

// Cell is a Value of any type, as steps name them in Needs and Sets.
type Cell interface {
	Name() string
	ready() <-chan struct{}
	isSet() bool
}

// Value is a write-once cell: how one lane hands a result to another.
type Value[T any] struct {
	name string
	done chan struct{}
	once sync.Once
	v    T
}

// NewValue returns an empty cell with a name for people.
func NewValue[T any](name string) *Value[T] {
	return &Value[T]{name: name, done: make(chan struct{})}
}

// Of returns a cell that is already set, for what is known before the run.
func Of[T any](name string, v T) *Value[T] {
	c := NewValue[T](name)
	c.Set(v)
	return c
}

// Name says what the cell holds.
func (c *Value[T]) Name() string { return c.name }

// Set fills the cell. Only the first call counts, so that a step whose Check and
// Apply both learn the value need not remember which came first.
func (c *Value[T]) Set(v T) {
	c.once.Do(func() {
		c.v = v
		close(c.done)
	})
}

// Get returns what was set. A step may call it for the cells it Needs; any
// other call may meet an empty cell, which is a defect and panics.
func (c *Value[T]) Get() T {
	if !c.isSet() {
		panic(unset{c.name})
	}
	return c.v
}

// unset is the panic of a Get that came too early.
type unset struct{ name string }

func (u unset) Error() string {
	return fmt.Sprintf("plan: %s was read before it was set: the step does not name it in Needs", u.name)
}

// IsSet tells whether Get has something to return.
func (c *Value[T]) IsSet() bool { return c.isSet() }

// Known is Get with an error in the place of the panic, for those who look on
// other goroutines than their step's: a preview understands both.
func (c *Value[T]) Known() (T, error) {
	if !c.isSet() {
		var none T
		return none, unset{c.name}
	}
	return c.v, nil
}

func (c *Value[T]) ready() <-chan struct{} { return c.done }

func (c *Value[T]) isSet() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}
