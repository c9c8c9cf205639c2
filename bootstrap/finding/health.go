package finding

// healthCodes are of what is found in a cluster that runs, or that should.
func healthCodes() []Explanation {
	return []Explanation{}
}
