package finding

// Diagnosed is an error with what was found out about it.
type Diagnosed struct {
	Err     error
	Finding Finding
}

func (d *Diagnosed) Error() string { return d.Err.Error() }

func (d *Diagnosed) Unwrap() error { return d.Err }
