package lab

import (
	"bytes"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	const out = `[    1.0] a kernel message
=== RUN   TestA
    a_test.go:7: said in A
=== RUN   TestA/sub
    --- PASS: TestA/sub (0.00s)
--- PASS: TestA (0.01s)
=== RUN   TestB
--- FAIL: TestB (1.20s)
=== RUN   TestC
--- SKIP: TestC (0.00s)
between
=== RUN   TestD
panic: oh
no newline at the end`
	var live bytes.Buffer
	results, rest := parse(strings.NewReader(out), &live)
	var got []string
	for _, r := range results {
		got = append(got, r.name+"="+r.verdict)
	}
	if want := "TestA=PASS TestB=FAIL TestC=SKIP TestD="; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if want := "[    1.0] a kernel message\nbetween\n"; rest != want {
		t.Errorf("outside of tests: got %q, want %q", rest, want)
	}
	if a := results[0].output.String(); !strings.Contains(a, "said in A") || !strings.Contains(a, "TestA/sub") {
		t.Errorf("output of TestA: %q", a)
	}
	if d := results[3].output.String(); !strings.HasSuffix(d, "no newline at the end") {
		t.Errorf("output of TestD: %q", d)
	}
	if got, want := strings.Count(live.String(), "guest| "), strings.Count(out, "\n")+1; got != want {
		t.Errorf("%d lines shown live, want %d", got, want)
	}
}
