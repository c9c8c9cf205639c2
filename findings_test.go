package kubewright_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/finding"
)

// TestFindingsAreExplained reads the source: a code is a constant of type
// finding.Code; each has an explanation, each explanation a constant, and each
// constant is used by something that looks.
func TestFindingsAreExplained(t *testing.T) {
	declared := map[string]string{} // code by the constant's name
	used := map[string]bool{}       // names
	walkSource(t, func(name string, file *ast.File) {
		within := filepath.ToSlash(filepath.Dir(name)) == "bootstrap/finding"
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				if !isCode(n.Type, within) || len(n.Values) != 1 {
					return true
				}
				text, err := strconv.Unquote(n.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				declared[n.Names[0].Name] = text
				return false
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				if ok && x.Name == "finding" {
					used[n.Sel.Name] = true
				}
				return !ok // another package's names are not ours
			case *ast.KeyValueExpr:
				key, _ := n.Key.(*ast.Ident)
				lit, isText := n.Value.(*ast.BasicLit)
				if key != nil && key.Name == "Code" && isText && lit.Kind == token.STRING && strings.Contains(name, "bootstrap/") {
					t.Errorf("%s: code %s is no constant", name, lit.Value)
				}
			case *ast.Ident:
				if !within {
					used[n.Name] = true // of a constant beside its use
				}
			}
			return true
		})
	})
	codes := map[string]bool{}
	for name, code := range declared {
		codes[code] = true
		if _, ok := finding.Explain(finding.Code(code)); !ok {
			t.Errorf("%s (%s) has no explanation", name, code)
		}
		if !used[name] {
			t.Errorf("%s (%s) is never found by anything", name, code)
		}
	}
	for _, e := range finding.Explanations() {
		if !codes[string(e.Code)] {
			t.Errorf("%s is explained, and no constant", e.Code)
		}
	}
}

// isCode tells the type finding.Code, inside the package or outside.
func isCode(e ast.Expr, within bool) bool {
	switch e := e.(type) {
	case *ast.Ident:
		return within && e.Name == "Code"
	case *ast.SelectorExpr:
		x, ok := e.X.(*ast.Ident)
		return ok && x.Name == "finding" && e.Sel.Name == "Code"
	}
	return false
}

// walkSource parses every Go file that is no test.
func walkSource(t *testing.T, see func(name string, file *ast.File)) {
	t.Helper()
	files := token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "dist") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(files, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		see(name, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
