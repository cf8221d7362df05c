package docs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSecurityNamesTests: each test that security.md names as its proof is there.
func TestSecurityNamesTests(t *testing.T) {
	page, err := os.ReadFile("security.md")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	for _, folder := range []string{"chunkstore", filepath.Join("cmd", "shale")} {
		files, err := filepath.Glob(filepath.Join(root, folder, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(text), -1) {
				tests[m[1]] = true
			}
		}
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(page), -1)
	if len(named) < 15 {
		t.Errorf("security.md names only %d tests", len(named))
	}
	for _, m := range named {
		if !tests[m[1]] {
			t.Errorf("security.md names %s, and there is no such test", m[1])
		}
	}
}

// TestChunkstoreKnowsNoUsers: where keys come from is the caller's: the store reads no environment and no terminal.
func TestChunkstoreKnowsNoUsers(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "../chunkstore").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(out)) {
		if dep == "golang.org/x/term" || strings.HasPrefix(dep, "github.com/spf13/") {
			t.Errorf("chunkstore imports %s", dep)
		}
	}
}
