package spec

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decoder turns YAML nodes into values, keeps where each of them stands, and
// goes on after a fault. It takes what the types of this package are made of:
// structs, slices, maps of strings, strings, whole numbers, booleans, and types
// that read themselves from text.
type decoder struct {
	faults []Fault
	nodes  map[string]*yaml.Node // by path
	unread map[string]bool       // paths of values that could not be read
}

func newDecoder() *decoder {
	return &decoder{nodes: map[string]*yaml.Node{}, unread: map[string]bool{}}
}

// at is a fault of a node.
func at(node *yaml.Node, path, format string, args ...any) Fault {
	return Fault{Line: node.Line, Column: node.Column, Path: path, Message: fmt.Sprintf(format, args...)}
}

func (d *decoder) add(node *yaml.Node, path, format string, args ...any) {
	d.faults = append(d.faults, at(node, path, format, args...))
}

// refuse adds a fault of a value that therefore could not be read.
func (d *decoder) refuse(node *yaml.Node, path, format string, args ...any) {
	d.add(node, path, format, args...)
	d.unread[path] = true
}

// locate adds a fault that has a path only, with the position of the value
// there or else of the nearest around it. Nothing is said of what could not be
// read: that has its fault already.
func (d *decoder) locate(f Fault) {
	for path := f.Path; ; path = parentPath(path) {
		if d.unread[path] {
			return
		}
		if node, ok := d.nodes[path]; ok && f.Line == 0 {
			f.Line, f.Column = node.Line, node.Column
		}
		if path == "" {
			break
		}
	}
	d.faults = append(d.faults, f)
}

func parentPath(path string) string {
	return path[:max(0, strings.LastIndexAny(path, ".["))]
}

// value reads node into v.
func (d *decoder) value(node *yaml.Node, v reflect.Value, path string) {
	d.nodes[path] = node
	if isNull(node) {
		return // a field without a value is one that was left out
	}
	if text, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.text(node, text, path)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.fields(node, v, path)
	case reflect.Slice:
		d.list(node, v, path)
	case reflect.Map:
		d.stringMap(node, v, path)
	case reflect.String:
		if s, ok := d.string(node, path); ok {
			v.SetString(s)
		}
	case reflect.Int:
		if node.Kind != yaml.ScalarNode || node.ShortTag() != "!!int" {
			d.refuse(node, path, "%s where a whole number is expected", describe(node))
		} else if err := node.Decode(v.Addr().Interface()); err != nil {
			d.refuse(node, path, "%s is too large", describe(node))
		}
	case reflect.Bool:
		if node.Kind != yaml.ScalarNode || node.ShortTag() != "!!bool" {
			d.refuse(node, path, "%s where true or false is expected", describe(node))
			return
		}
		v.SetBool(strings.EqualFold(node.Value, "true"))
	default:
		panic(fmt.Sprintf("spec: a field of type %s cannot be read", v.Type())) // reached by no type of this package
	}
}

// text reads a value that knows its own syntax.
func (d *decoder) text(node *yaml.Node, into encoding.TextUnmarshaler, path string) {
	s, ok := d.string(node, path)
	if !ok {
		return
	}
	err := into.UnmarshalText([]byte(s))
	if err == nil {
		return
	}
	switch into.(type) { // netip's errors are written for programmers
	case *netip.Addr:
		d.refuse(node, path, "%q is not an IP address", s)
	case *netip.Prefix:
		if addr, err := netip.ParseAddr(s); err == nil {
			d.refuse(node, path, "%q is an address, not a range: write address/length, as in %s/16", s, addr)
			return
		}
		d.refuse(node, path, "%q is not a range: write address/length, as in 10.0.0.0/16", s)
	default:
		d.refuse(node, path, "%v", err)
	}
}

func (d *decoder) string(node *yaml.Node, path string) (string, bool) {
	switch {
	case node.Kind == yaml.ScalarNode && node.ShortTag() == "!!str":
		return node.Value, true
	case isCore(node):
		d.refuse(node, path, "%s where a text is expected: write it in quotes, %q", describe(node), node.Value)
	default:
		d.refuse(node, path, "%s where a text is expected", describe(node))
	}
	return "", false
}

// isCore reports whether a scalar is a number, boolean, date or null.
func isCore(node *yaml.Node) bool {
	switch node.ShortTag() {
	case "!!int", "!!float", "!!bool", "!!timestamp", "!!null":
		return node.Kind == yaml.ScalarNode
	}
	return false
}

func (d *decoder) list(node *yaml.Node, v reflect.Value, path string) {
	if node.Kind != yaml.SequenceNode {
		d.refuse(node, path, "%s where a list is expected", describe(node))
		return
	}
	if len(node.Content) == 0 {
		return // as if left out: nil
	}
	v.Set(reflect.MakeSlice(v.Type(), len(node.Content), len(node.Content)))
	for i, item := range node.Content {
		itemPath := fmt.Sprintf("%s[%d]", path, i)
		if isNull(item) {
			d.refuse(item, itemPath, "the list has an item without a value")
			continue
		}
		d.value(item, v.Index(i), itemPath)
	}
}

func (d *decoder) stringMap(node *yaml.Node, v reflect.Value, path string) {
	m := map[string]string{}
	d.pairs(node, path, func(key string, _, value *yaml.Node) {
		itemPath := path + keyPath(key)
		d.nodes[itemPath] = value
		if isNull(value) {
			d.refuse(value, itemPath, `there is no value: write "" for an empty one`)
			return
		}
		if s, ok := d.string(value, itemPath); ok {
			m[key] = s
		}
	})
	if len(m) > 0 { // else as if left out: nil
		v.Set(reflect.ValueOf(m))
	}
}

func (d *decoder) fields(node *yaml.Node, v reflect.Value, path string) {
	known := fieldsOf(v.Type())
	d.pairs(node, path, func(key string, keyNode, value *yaml.Node) {
		for _, f := range known {
			if f.name == key {
				d.value(value, v.FieldByIndex(f.index), join(path, key))
				return
			}
		}
		d.add(keyNode, join(path, key), "unknown field%s", hint(key, known))
	})
}

// pairs walks the keys of a mapping: texts, each of them once.
func (d *decoder) pairs(node *yaml.Node, path string, visit func(key string, keyNode, value *yaml.Node)) {
	if node.Kind != yaml.MappingNode {
		d.refuse(node, path, "%s where a mapping is expected", describe(node))
		return
	}
	lines := map[string]int{}
	for i := 0; i < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		switch {
		case key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge":
			d.add(key, path, "merge keys are not supported: write the fields out")
			continue
		case key.Kind != yaml.ScalarNode:
			d.add(key, path, "%s where the name of a field is expected", describe(key))
			continue
		case key.ShortTag() != "!!str":
			d.add(key, path, "%s where the name of a field is expected: write it in quotes, %q", describe(key), key.Value)
			continue
		}
		if line, again := lines[key.Value]; again {
			d.add(key, join(path, key.Value), "is given twice, the first time in line %d", line)
			continue
		}
		lines[key.Value] = key.Line
		visit(key.Value, key, value)
	}
}

func isNull(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null"
}

// describe says what a node is, for "... where a list is expected".
func describe(node *yaml.Node) string {
	switch node.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "a mapping"
	case yaml.AliasNode:
		return fmt.Sprintf("the alias *%s (aliases are not supported, write the value out)", node.Value)
	}
	switch node.ShortTag() {
	case "!!str":
		return fmt.Sprintf("the text %q", node.Value)
	case "!!int", "!!float":
		return "the number " + node.Value
	case "!!bool":
		return "the boolean " + node.Value
	case "!!timestamp":
		return "the date " + node.Value
	case "!!null":
		return "no value"
	}
	return fmt.Sprintf("a value with the tag %s", node.Tag)
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// field is a field as the file knows it; those of inlined structs are their owner's.
type field struct {
	name  string
	index []int // for reflect.Value.FieldByIndex
	typ   reflect.Type
}

// fieldsOf lists the fields of a struct, in the order of declaration.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if options == "inline" {
			for _, inner := range fieldsOf(f.Type) {
				inner.index = append([]int{i}, inner.index...)
				fields = append(fields, inner)
			}
			continue
		}
		fields = append(fields, field{name: name, index: []int{i}, typ: f.Type})
	}
	return fields
}

// hint says which name was meant: one of the fields that stand there, by its
// spelling, or one of the same name that belongs elsewhere.
func hint(key string, known []field) string {
	best, bestDistance := "", max(2, len(key)/3)+1
	for _, f := range known {
		if d := distance(strings.ToLower(key), strings.ToLower(f.name)); d < bestDistance {
			best, bestDistance = f.name, d
		}
	}
	if best != "" {
		return fmt.Sprintf(" (did you mean %s?)", best)
	}
	if path := findField(reflect.TypeFor[Cluster](), key, ""); path != "" {
		return fmt.Sprintf(" here (did you mean %s?)", path)
	}
	names := make([]string, len(known))
	for i, f := range known {
		names[i] = f.name
	}
	return fmt.Sprintf(" (known: %s)", strings.Join(names, ", "))
}

// findField returns the path of the first field of that name, "" if there is none.
func findField(t reflect.Type, name, path string) string {
	for _, f := range fieldsOf(t) {
		at := join(path, f.name)
		if strings.EqualFold(f.name, name) {
			return at
		}
		typ := f.typ
		if typ.Kind() == reflect.Slice {
			typ, at = typ.Elem(), at+"[]"
		}
		if typ.Kind() == reflect.Struct && !reflect.PointerTo(typ).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
			if found := findField(typ, name, at); found != "" {
				return found
			}
		}
	}
	return ""
}

// distance is the number of insertions, deletions and replacements of bytes
// between two names (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// syntaxLine finds the line in yaml's syntax errors, which have it in their
// text only. Nothing is decided by it.
var syntaxLine = regexp.MustCompile(`^yaml: line (\d+): `)

func syntaxFault(err error) Fault {
	text := err.Error()
	f := Fault{Message: "is not YAML: " + strings.TrimPrefix(text, "yaml: ")}
	if m := syntaxLine.FindStringSubmatch(text); m != nil {
		f.Line, _ = strconv.Atoi(m[1])
		f.Column = 1
		f.Message = "is not YAML: " + text[len(m[0]):]
	}
	return f
}
