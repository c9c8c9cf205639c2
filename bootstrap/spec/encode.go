package spec

import (
	"bytes"
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"
)

// encode writes c as YAML. yaml's own encoder cannot be used on the types: its
// omitempty takes every netip.Addr and netip.Prefix for empty.
func encode(c *Cluster) ([]byte, error) {
	root, err := node(reflect.ValueOf(*c))
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	enc := yaml.NewEncoder(&text)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return nil, err
	}
	if err := enc.Close(); err != nil {
		return nil, err
	}
	return text.Bytes(), nil
}

func node(v reflect.Value) (*yaml.Node, error) {
	if text, ok := v.Interface().(encoding.TextMarshaler); ok {
		s, err := text.MarshalText()
		if err != nil {
			return nil, err
		}
		return scalar(string(s))
	}
	switch v.Kind() {
	case reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for _, f := range fieldsOf(v.Type()) {
			value := v.FieldByIndex(f.index)
			if empty(value) {
				continue
			}
			if err := appendPair(n, f.name, value); err != nil {
				return nil, fmt.Errorf("%s: %w", f.name, err)
			}
		}
		return n, nil
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			item, err := node(v.Index(i))
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, item)
		}
		return n, nil
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		m := v.Interface().(map[string]string) // the only maps there are
		for _, key := range slices.Sorted(maps.Keys(m)) {
			if err := appendPair(n, key, reflect.ValueOf(m[key])); err != nil {
				return nil, err
			}
		}
		return n, nil
	case reflect.String:
		return scalar(v.String())
	default:
		return scalar(v.Interface())
	}
}

func appendPair(mapping *yaml.Node, key string, value reflect.Value) error {
	k, err := scalar(key)
	if err != nil {
		return err
	}
	v, err := node(value)
	if err != nil {
		return err
	}
	mapping.Content = append(mapping.Content, k, v)
	return nil
}

// scalar has yaml choose the quotes.
func scalar[T any](value T) (*yaml.Node, error) {
	var n yaml.Node
	err := n.Encode(value)
	return &n, err
}

// empty reports whether a value says nothing: a struct of which that is true of
// all fields, too.
func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	case reflect.Struct:
		if _, text := v.Interface().(encoding.TextMarshaler); !text {
			for _, f := range fieldsOf(v.Type()) {
				if !empty(v.FieldByIndex(f.index)) {
					return false
				}
			}
			return true
		}
	}
	return v.IsZero()
}
