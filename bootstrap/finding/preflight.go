package finding

// preflightCodes are of what is found before the first change.
func preflightCodes() []Explanation {
	return []Explanation{}
}
