package docs_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/shalebackup/shale/"

// mayImport says which rooms the packages of a room may import beside their own. Imports point down the list of rooms in
// architecture.md.
var mayImport = map[string][]string{
	"thin":       {},
	"chunkstore": {},
	"engine":     {"thin", "chunkstore"},
	"fusemount":  {"thin", "chunkstore"},
	"plugin":     {"engine", "fusemount", "thin", "chunkstore"},
	"cmd":        {"plugin", "engine", "fusemount", "thin", "chunkstore"},
	"bench":      {"plugin", "engine", "fusemount", "thin", "chunkstore", "e2e"},
	"e2e":        {"plugin", "engine", "fusemount", "thin", "chunkstore"},
	"docs":       {"plugin", "engine", "fusemount", "thin", "chunkstore"},
}

// testHelpers may be imported by the tests of every room.
var testHelpers = []string{"e2e/fstest"}

var whyNot = map[string]string{
	"thin":       "it must stay usable, testable and benchmarkable alone",
	"chunkstore": "it must stay usable, testable and benchmarkable alone",
	"engine":     "what it needs of a store belongs in chunkstore, what it needs of a pool in thin",
	"fusemount":  "what it shares with engine belongs in chunkstore",
}

// Imports go one way: cmd -> plugin -> {fusemount, engine} -> {thin, chunkstore}; nobody imports cmd, bench or e2e.
func TestImports(t *testing.T) {
	t.Parallel()
	files := 0
	err := filepath.WalkDir("..", func(file string, e fs.DirEntry, err error) error {
		switch name := filepath.Base(file); {
		case err != nil:
			return err
		case e.IsDir() && (name == "testdata" || len(name) > 2 && name[0] == '.'):
			return fs.SkipDir
		case e.IsDir() || filepath.Ext(name) != ".go":
			return nil
		}
		files++
		return checkImports(t, file)
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 100 {
		t.Errorf("only %d files were found", files)
	}
}

// checkImports reads one file, so that files for other systems count too.
func checkImports(t *testing.T, file string) error {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		return err
	}
	folder, err := filepath.Rel("..", filepath.Dir(file))
	if err != nil {
		return err
	}
	for _, spec := range parsed.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		if strings.HasSuffix(file, "_test.go") && slices.Contains(testHelpers, strings.TrimPrefix(imported, module)) {
			continue
		}
		if complaint := forbidden(filepath.ToSlash(folder), imported); complaint != "" {
			t.Errorf("%s: %s", file, complaint)
		}
	}
	return nil
}

// What the test above refuses.
func TestImportRules(t *testing.T) {
	for _, c := range []struct {
		from, to string
		ok       bool
	}{
		{"cmd/shale", "engine/source", true},
		{"engine/source", "thin/pool", true},
		{"thin/pool", "thin", true},
		{"engine", "fmt", true},
		{"thin", "chunkstore", false},
		{"chunkstore/backend/file", "thin", false},
		{"engine", "fusemount", false},
		{"fusemount", "engine", false},
		{"fusemount", "cmd/shale", false},
		{"engine", "bench/metadiff", false},
		{"engine", "e2e/fstest", false},
		{"engine", "unknown", false},
	} {
		to := c.to
		if to != "fmt" {
			to = module + to
		}
		if complaint := forbidden(c.from, to); (complaint == "") != c.ok {
			t.Errorf("%s imports %s: %q", c.from, c.to, complaint)
		}
	}
}

// forbidden says what is wrong with a package, named by its folder, importing another; empty when nothing is.
func forbidden(from, to string) string {
	to, ours := strings.CutPrefix(to, module)
	if !ours {
		return ""
	}
	room, other := roomOf(from), roomOf(to)
	allowed, known := mayImport[room]
	if !known {
		return from + " is in no room that this test knows: add it to docs/architecture.md and to mayImport"
	}
	if other == room || slices.Contains(allowed, other) {
		return ""
	}
	complaint := from + " imports " + to + ", but " + room + " may import "
	if len(allowed) == 0 {
		complaint += "no other room"
	} else {
		complaint += "only " + strings.Join(allowed, ", ")
	}
	if why := whyNot[room]; why != "" {
		complaint += ": " + why
	}
	return complaint + " (docs/architecture.md, \"Rooms\")"
}

func roomOf(path string) string {
	room, _, _ := strings.Cut(path, "/")
	return room
}
