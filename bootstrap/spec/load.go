package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"

	"go.yaml.in/yaml/v3"
)

// maxSize of a cluster file, in bytes: far above any real one.
const maxSize = 1 << 20

// Load reads a cluster file, completes it with Default and judges it with
// Validate. It is strict: fields must be known and given once, values must have
// their type, and there is one document. All faults are told at once, as
// *Errors within a fault.SpecInvalid, each with its line; a read that fails is
// returned as it is. name stands for the file in messages.
func Load(r io.Reader, name string) (*Cluster, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > maxSize {
		return nil, wrap(name, []Fault{{Message: fmt.Sprintf("is larger than %d bytes: this is no cluster file", maxSize)}})
	}
	document, faults := parse(text)
	if len(faults) > 0 {
		return nil, wrap(name, faults)
	}
	if faults := header(document); len(faults) > 0 {
		// Of a file of another kind, every field would be unknown.
		return nil, wrap(name, faults)
	}

	d := newDecoder()
	var c Cluster
	d.value(document, reflect.ValueOf(&c).Elem(), "")
	c.Default()
	for _, f := range c.faults() {
		d.locate(f)
	}
	if len(d.faults) > 0 {
		return nil, wrap(name, d.faults)
	}
	return &c, nil
}

// parse returns the one document of a YAML text.
func parse(text []byte) (*yaml.Node, []Fault) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var document, second yaml.Node
	switch err := dec.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil, []Fault{{Message: "is empty: it must hold a cluster, headed by apiVersion and kind"}}
	case err != nil:
		return nil, []Fault{syntaxFault(err)}
	}
	switch err := dec.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, []Fault{syntaxFault(err)}
	default:
		return nil, []Fault{{Line: second.Line, Column: second.Column, Message: "a second document begins here: a cluster file has one"}}
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		if isNull(root) {
			return nil, []Fault{{Message: "is empty: it must hold a cluster, headed by apiVersion and kind"}}
		}
		return nil, []Fault{at(root, "", "%s where the fields of a cluster are expected", describe(root))}
	}
	return root, nil
}

// header tells whether a file is a cluster at all.
func header(root *yaml.Node) []Fault {
	var faults []Fault
	for _, want := range []struct{ field, value string }{{"apiVersion", APIVersion}, {"kind", Kind}} {
		found := false
		for i := 0; i < len(root.Content); i += 2 {
			key, value := root.Content[i], root.Content[i+1]
			if key.Value != want.field {
				continue
			}
			found = true
			if value.Kind != yaml.ScalarNode || value.Value != want.value {
				faults = append(faults, at(value, want.field, "%s is not supported, it must be %s", describe(value), want.value))
			}
			break
		}
		if !found {
			faults = append(faults, at(root, want.field, "is missing: it must be %s", want.value))
		}
	}
	return faults
}

// Marshal writes the cluster as a file that Load reads as the same cluster.
// Fields that have their zero value are left out.
func Marshal(c *Cluster) ([]byte, error) {
	text, err := encode(c)
	if err != nil {
		return nil, fmt.Errorf("write cluster %s: %w", c.Name, err)
	}
	return text, nil
}
