// Gen writes docs/spec.md, the reference of the cluster file, from the types of
// package spec: their fields, tags and doc comments are all it knows.
//
// It runs by `go generate ./bootstrap/spec`; its test fails when the page is stale.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

func main() {
	src := flag.String("src", ".", "folder of package spec")
	examples := flag.String("examples", "../../testdata/specs/valid", "folder of the examples")
	out := flag.String("o", "", "file to write")
	flag.Parse()
	page, err := generate(*src, *examples)
	if err == nil {
		err = os.WriteFile(*out, page, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// generate returns the page.
func generate(src, examples string) ([]byte, error) {
	pkg, err := parse(src)
	if err != nil {
		return nil, err
	}
	tables, err := pkg.tables("Cluster")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString("# The cluster file\n\n" +
		"<!-- Generated from bootstrap/spec by `go generate ./bootstrap/spec`; do not edit. -->\n\n")
	for _, part := range []struct{ text, example string }{
		{"The file is read strictly: a field that is not on this page, a field given twice or a value of another\n" +
			"type is refused with its line, and all faults are told at once. What is left out has its default.\n" +
			"Anchors and aliases are not supported. The least that makes a cluster:\n", "minimal.yaml"},
		{"Everything there is:\n", "full.yaml"},
	} {
		example, err := os.ReadFile(filepath.Join(examples, part.example))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s\n```yaml\n%s```\n\n", part.text, example)
	}
	for _, t := range tables {
		fmt.Fprintf(&b, "## %s\n\n%s\n\n| field | type | default | meaning |\n|---|---|---|---|\n", t.name, t.doc)
		for _, f := range t.fields {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.name, f.typ, cell(f.def), cell(f.doc))
		}
		b.WriteString("\n")
	}
	return append(bytes.TrimRight(b.Bytes(), "\n"), '\n'), nil
}

// cell keeps a text in one cell of a table.
func cell(text string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", `\|`)
}

// source is a package's types.
type source struct {
	structs map[string]*ast.StructType
	docs    map[string]string
	consts  map[string][]string // values of the string constants of a type, in order
	texts   map[string]bool     // types that are written as text
}

func parse(folder string) (*source, error) {
	fset := token.NewFileSet()
	paths, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		return nil, err
	}
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	pkg, err := doc.NewFromFiles(fset, files, "spec", doc.PreserveAST)
	if err != nil {
		return nil, err
	}
	s := &source{map[string]*ast.StructType{}, map[string]string{}, map[string][]string{}, map[string]bool{}}
	for _, t := range pkg.Types {
		s.docs[t.Name] = strings.TrimSpace(t.Doc)
		for _, m := range t.Methods {
			s.texts[t.Name] = s.texts[t.Name] || m.Name == "UnmarshalText"
		}
		for _, spec := range t.Decl.Specs {
			if st, ok := spec.(*ast.TypeSpec).Type.(*ast.StructType); ok {
				s.structs[t.Name] = st
			}
		}
		for _, c := range t.Consts {
			for _, spec := range c.Decl.Specs {
				for _, v := range spec.(*ast.ValueSpec).Values {
					value, err := strconv.Unquote(v.(*ast.BasicLit).Value)
					if err != nil {
						return nil, fmt.Errorf("constant of %s: %w", t.Name, err)
					}
					s.consts[t.Name] = append(s.consts[t.Name], value)
				}
			}
		}
	}
	return s, nil
}

type table struct {
	name, doc string
	fields    []row
}

type row struct{ name, typ, def, doc string }

// tables returns a table for the struct and for each that it leads to, once, in
// the order of reading.
func (s *source) tables(name string) ([]table, error) {
	var tables []table
	done := map[string]bool{}
	for queue := []string{name}; len(queue) > 0; queue = queue[1:] {
		if done[queue[0]] {
			continue
		}
		done[queue[0]] = true
		fields, next, err := s.fields(queue[0])
		if err != nil {
			return nil, err
		}
		tables = append(tables, table{queue[0], s.docs[queue[0]], fields})
		queue = append(queue, next...)
	}
	return tables, nil
}

// fields returns the rows of a struct, and the structs that they are made of.
func (s *source) fields(name string) (rows []row, next []string, err error) {
	for _, f := range s.structs[name].Fields.List {
		tag, err := strconv.Unquote(f.Tag.Value)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		key, options, _ := strings.Cut(reflect.StructTag(tag).Get("yaml"), ",")
		if options == "inline" {
			inner, more, err := s.fields(f.Type.(*ast.Ident).Name)
			if err != nil {
				return nil, nil, err
			}
			rows, next = append(rows, inner...), append(next, more...)
			continue
		}
		if len(f.Names) != 1 || f.Doc == nil {
			return nil, nil, fmt.Errorf("%s.%s has no doc comment of its own", name, key)
		}
		typ, of := s.typ(f.Type)
		if typ == "" {
			return nil, nil, fmt.Errorf("%s.%s has a type that the reference has no word for", name, key)
		}
		text, def := split(f.Doc.Text())
		rows = append(rows, row{key, typ, def, plain(text, f.Names[0].Name, key)})
		if of != "" {
			next = append(next, of)
		}
	}
	return rows, next, nil
}

var defaultSentence = regexp.MustCompile(`(?s)\s*Default: (.*?)\.?\s*$`)

// split parts a comment into what it says and the default that it ends with.
func split(comment string) (text, def string) {
	if m := defaultSentence.FindStringSubmatchIndex(comment); m != nil {
		return comment[:m[0]], comment[m[2]:m[3]]
	}
	return comment, ""
}

// plain turns a comment, which begins with the name of the Go field, into a text
// for people who know the file alone.
func plain(text, name, key string) string {
	rest, ok := strings.CutPrefix(text, name+" ")
	if !ok {
		return text
	}
	for _, verb := range []string{"is ", "are "} {
		if said, ok := strings.CutPrefix(rest, verb); ok {
			return strings.ToUpper(said[:1]) + said[1:]
		}
	}
	if name[1:] == strings.ToLower(name[1:]) {
		return text // one word of English
	}
	return "`" + key + "` " + rest
}

// typ names a type for people who write YAML, and the struct that it is made of, if any.
func (s *source) typ(expr ast.Expr) (name, of string) {
	switch t := expr.(type) {
	case *ast.ArrayType:
		name, of = s.typ(t.Elt)
		return "list of " + name, of
	case *ast.MapType:
		return "mapping of text to text", ""
	case *ast.SelectorExpr:
		switch t.Sel.Name {
		case "Addr":
			return "address", ""
		case "Prefix":
			return "range", ""
		}
	case *ast.Ident:
		switch {
		case t.Name == "string":
			return "text", ""
		case t.Name == "int":
			return "number", ""
		case t.Name == "bool":
			return "true or false", ""
		case len(s.consts[t.Name]) > 0:
			values := slices.Clone(s.consts[t.Name])
			for i, v := range values {
				values[i] = "`" + v + "`"
			}
			return strings.Join(values, ", "), ""
		case s.texts[t.Name]:
			return "text", ""
		case s.structs[t.Name] != nil:
			return fmt.Sprintf("[%s](#%s)", t.Name, strings.ToLower(t.Name)), t.Name
		}
	}
	return "", ""
}
