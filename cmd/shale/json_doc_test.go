package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/chunkstore/backend"
)

// jsonDoc is docs/cli-json.md: the tables of its sections by their names.
type jsonDoc struct {
	sections map[string][]jsonRow
	seen     map[string]bool // rows that some answer had, by section and path
}

// jsonRow is a row of a table: a field, or a place where another section's fields stand.
type jsonRow struct{ path, kind, section string }

// jsonField is a documented field of a command, after all sections are put in their places.
type jsonField struct {
	kind     string
	optional bool
	row      string // key of jsonDoc.seen
}

var (
	jsonRowRE  = regexp.MustCompile("^\\| `([^`]*)` \\| ([^|]*) \\|")
	jsonLinkRE = regexp.MustCompile(`\(#([a-z-]+)\)`)
)

func readJSONDoc(t *testing.T) *jsonDoc {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "cli-json.md"))
	if err != nil {
		t.Fatal(err)
	}
	d := &jsonDoc{sections: map[string][]jsonRow{}, seen: map[string]bool{}}
	name := ""
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSpace(line)
		if s, ok := strings.CutPrefix(line, "## "); ok {
			name = s
		}
		if m := jsonRowRE.FindStringSubmatch(line); m != nil {
			row := jsonRow{path: m[1], kind: strings.TrimSpace(m[2])}
			if link := jsonLinkRE.FindStringSubmatch(m[2]); link != nil {
				row.section = strings.ReplaceAll(link[1], "-", " ")
			}
			d.sections[name] = append(d.sections[name], row)
		}
	}
	return d
}

// fields puts a section's fields under prefix into out.
func (d *jsonDoc) fields(t *testing.T, section, prefix string, out map[string]jsonField) {
	rows := d.sections[section]
	if len(rows) == 0 {
		t.Fatalf("docs/cli-json.md has no table in a section %q", section)
	}
	for _, row := range rows {
		path := joinPath(prefix, row.path)
		kind, optional := strings.CutSuffix(row.kind, ", optional")
		if row.section != "" {
			d.seen[section+" "+row.path] = true
			d.fields(t, row.section, path, out)
			continue
		}
		out[path] = jsonField{kind, optional, section + " " + row.path}
	}
}

func joinPath(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "." + b
}

// compare holds one answer against a command's section.
func (d *jsonDoc) compare(t *testing.T, section string, answer any) {
	t.Helper()
	want := map[string]jsonField{}
	d.fields(t, section, "", want)
	got := map[string]string{}
	flatten(got, "", answer)
	for path, kind := range got {
		f, ok := want[path]
		switch {
		case !ok && (kind == "object" || path == "[]" || path == ""): // implied by the fields below
		case !ok:
			t.Errorf("%s prints %s (%s), which docs/cli-json.md lacks", section, path, kind)
		case !slices.Contains(strings.Split(f.kind, " or "), kind) && !(f.kind == "map" && kind == "object"):
			t.Errorf("%s prints %s as %s, docs/cli-json.md says %s", section, path, kind, f.kind)
		default:
			d.seen[f.row] = true
		}
	}
	for path, f := range want {
		parent := path[:max(0, strings.LastIndexAny(path, ".["))]
		if _, ok := got[path]; !ok && !f.optional && got[parent] == "object" {
			t.Errorf("%s does not print %s, which docs/cli-json.md promises", section, path)
		}
	}
}

// flatten notes the type of each value by its path: "a.b", "list[].c".
func flatten(out map[string]string, path string, v any) {
	switch v := v.(type) {
	case nil:
		out[path] = "null"
	case string:
		out[path] = "string"
	case bool:
		out[path] = "boolean"
	case float64:
		out[path] = "number"
	case []any:
		out[path] = "array"
		for _, e := range v {
			flatten(out, path+"[]", e)
		}
	case map[string]any:
		out[path] = "object"
		if path == "source" || strings.HasSuffix(path, ".source") || path == "labels" || strings.HasSuffix(path, ".labels") {
			return // their fields are the source's and the user's own
		}
		for k, e := range v {
			flatten(out, joinPath(path, k), e)
		}
	}
}

// jsonCommand runs commands with --json against one repository.
type jsonCommand struct {
	t     *testing.T
	doc   *jsonDoc
	cache string
}

// run runs a command, compares its JSON value with the section of the command's name and returns it. code is the exit code.
func (c *jsonCommand) run(code int, args ...string) map[string]any {
	c.t.Helper()
	values := c.values(code, args...)
	words := 2
	if len(args) > 2 && args[1] == "key" { // the one group in a group
		words = 3
	}
	section := "shale " + strings.Join(args[:min(words, len(args))], " ")
	if len(values) != 1 {
		c.t.Fatalf("%s printed %d values, want one: %v", section, len(values), values)
	}
	c.doc.compare(c.t, section, values[0])
	answer, _ := values[0].(map[string]any)
	return answer
}

func (c *jsonCommand) values(code int, args ...string) (values []any) {
	c.t.Helper()
	var out, talk bytes.Buffer
	args = append(slices.Clone(args), "--json", "--quiet", "--cache-dir", c.cache)
	if got := run(c.t.Context(), args, strings.NewReader(""), &out, &talk); got != code {
		c.t.Fatalf("shale %s: exit code %d, want %d: %s", strings.Join(args, " "), got, code, talk.String())
	}
	for dec := json.NewDecoder(&out); ; {
		var v any
		err := dec.Decode(&v)
		if errors.Is(err, io.EOF) {
			return values
		}
		if err != nil {
			c.t.Fatalf("shale %s: %v", strings.Join(args, " "), err)
		}
		values = append(values, v)
	}
}

func (c *jsonCommand) create(args ...string) (url string) {
	c.t.Helper()
	url, ok := c.run(0, append([]string{"backup", "create"}, args...)...)["url"].(string)
	if !ok {
		c.t.Fatal("backup create printed no url")
	}
	return url
}

// Every field that a command prints with --json is in docs/cli-json.md with its type, and every field there is printed.
func TestJSONIsDocumented(t *testing.T) {
	dir := t.TempDir()
	repo, image := filepath.Join(dir, "repo"), filepath.Join(dir, "image")
	c := &jsonCommand{t, readJSONDoc(t), filepath.Join(dir, "cache")}

	noise := bytes.Repeat([]byte("0123456789abcdef"), 5000)
	if err := os.WriteFile(image, noise, 0o600); err != nil {
		t.Fatal(err)
	}
	c.run(0, "repo", "init", repo)
	c.run(0, "backup", "list", repo)
	url := c.create(image, "--dest", repo, "--volume", "img", "--label", "a=b")
	meta, data := thinMeta(t, "basic-ext4", "meta.img.zst"), filepath.Join(dir, "data")
	if err := os.WriteFile(data, thinFixture(t, "basic-ext4", "data.img.zst"), 0o600); err != nil {
		t.Fatal(err)
	}
	pool := []string{"--dest", repo, "--volume", "thin", "--thin-metadata", meta, "--thin-data", data}
	first := c.create(append(pool, "--thin-id", "2")...)
	second := c.create(append(pool, "--thin-id", "3", "--thin-base", "2")...)

	c.run(0, "backup", "list", repo)
	c.run(0, "backup", "inspect", second)
	c.run(0, "backup", "diff", first, second)
	c.run(0, "backup", "diff", first, first)
	c.run(0, "backup", "restore", url, filepath.Join(dir, "restored"))
	c.run(0, "backup", "verify", url)
	c.run(0, "repo", "stats", repo)
	c.run(0, "repo", "check", repo, "--data")
	c.run(0, "repo", "check", repo, "--read-data-subset", "1/1")
	c.run(0, "repo", "check", repo, "--read-data-subset", "1K")
	c.run(0, "repo", "check", repo, "--read-data-subset", "1K")
	c.doc.compare(t, "damage", asJSON(t, chunkstore.Damage{Copies: 1})) // takes two hosts at once
	c.run(0, "repo", "reindex", repo)
	c.mount(repo)
	c.copies(repo, url)
	c.keys(filepath.Join(dir, "sealed"))
	c.forget(repo, image)
	c.prune(repo, filepath.Join(dir, "copy"), image)
	c.damage(repo, url)
	c.run(0, "backup", "delete", url)

	c.run(0, "thin", "devices", meta)
	c.run(0, "thin", "mappings", meta)
	c.run(0, "thin", "delta", "--thin1", "2", "--thin2", "3", "--verbose", meta)

	c.run(0, "version")
	c.doc.compare(t, "shale version", asJSON(t, versionOf(&debug.BuildInfo{Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.time", Value: "2026-01-02T03:04:05Z"},
	}})))

	locked := chunkstore.ObjectLock{Mode: backend.Governance, Until: time.Unix(0, 0).UTC()} // which takes an S3 server: e2e has one
	c.doc.compare(t, "shale backup create", asJSON(t, created{
		Backup: &chunkstore.Backup{Lock: &locked}, Lock: &chunkstore.LockReport{ObjectLock: locked},
	}))
	c.doc.compare(t, "shale backup copy", asJSON(t, copyAnswer{
		Backup: &chunkstore.Backup{Lock: &locked}, Lock: &chunkstore.LockReport{ObjectLock: locked},
	}))

	failure := c.values(1, "backup", "inspect", url)
	if len(failure) != 1 {
		t.Fatalf("a failure is printed as %v", failure)
	}
	c.doc.compare(t, "failure", failure[0])

	for section, rows := range c.doc.sections {
		for _, row := range rows {
			if !c.doc.seen[section+" "+row.path] {
				t.Errorf("docs/cli-json.md has %q in %q, which no command printed", row.path, section)
			}
		}
	}
}

// Every command that a user can call has a section.
func TestJSONOfAllCommands(t *testing.T) {
	d := readJSONDoc(t)
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
		switch {
		case cmd.HasSubCommands(), cmd.Hidden, cmd.Name() == "help":
		case len(d.sections[cmd.CommandPath()]) == 0:
			t.Errorf("docs/cli-json.md has no section %q", cmd.CommandPath())
		}
	}
	for _, cmd := range newRootCommand(&app{}).Commands() {
		if cmd.Name() != "completion" {
			walk(cmd)
		}
	}
}

func asJSON(t *testing.T, v any) (out any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// copies copies a backup, and then the rest of the repository; and from that, where a backup is damaged.
func (c *jsonCommand) copies(repo, url string) {
	c.t.Helper()
	second, third := filepath.Join(c.t.TempDir(), "second"), filepath.Join(c.t.TempDir(), "third")
	c.run(0, "repo", "init", second, "--compression", "s2")
	c.run(0, "repo", "init", third)
	c.run(0, "backup", "copy", url, second)
	c.run(0, "backup", "copy", url, second)
	c.run(0, "repo", "sync", repo, second)
	packs, err := filepath.Glob(filepath.Join(second, "packs", "data", "*", "*"))
	if err != nil || len(packs) == 0 {
		c.t.Fatalf("no data packs: %v", err)
	}
	b, err := os.ReadFile(packs[0])
	if err != nil {
		c.t.Fatal(err)
	}
	b[50] ^= 1
	if err := os.WriteFile(packs[0], b, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.run(3, "repo", "sync", second, third)
}

// forget forgets one of two backups, in a repository with a record that cannot be read.
func (c *jsonCommand) forget(repo, image string) {
	c.t.Helper()
	for range 3 {
		c.create(image, "--dest", repo, "--volume", "forget")
	}
	records, err := filepath.Glob(filepath.Join(repo, "backups", "*", "*"))
	if err != nil || len(records) < 3 {
		c.t.Fatalf("%d records: %v", len(records), err)
	}
	broken := slices.MaxFunc(records, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) }) // the last made
	b, err := os.ReadFile(broken)
	if err != nil {
		c.t.Fatal(err)
	}
	b[60] ^= 1
	if err := os.WriteFile(broken, b, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.run(3, "backup", "forget", repo, "--volume", "forget", "--keep-last", "1", "--dry-run")
	if err := os.Remove(broken); err != nil {
		c.t.Fatal(err)
	}
	c.run(0, "backup", "forget", repo, "--volume", "forget", "--keep-last", "1", "--prune")
}

// prune prunes, and makes a backup that tells of it; then a repository of its own where a pack to be copied is damaged.
func (c *jsonCommand) prune(repo, broken, image string) {
	c.t.Helper()
	gone := c.create(image, "--dest", repo, "--volume", "gone")
	c.run(0, "backup", "delete", gone)
	noise := filepath.Join(c.t.TempDir(), "noise")
	if err := os.WriteFile(noise, []byte(strings.Repeat("something else ", 9000)), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.run(0, "backup", "delete", c.create(noise, "--dest", repo, "--volume", "gone"))
	c.run(0, "repo", "prune", repo, "--dry-run", "--grace", "1ns")
	c.run(0, "repo", "prune", repo, "--grace", "1ns", "--max-unused", "0")
	c.create(image, "--dest", repo, "--volume", "img")
	c.run(0, "backup", "list", repo)

	c.run(0, "repo", "init", broken)
	both := filepath.Join(c.t.TempDir(), "both")
	block := func(k byte) []byte { return bytes.Repeat([]byte{k}, 4096) }
	kept, all := []byte{}, []byte{}
	for k := range byte(200) { // noise enough for chunks to end
		b := block(k)
		for i := range b {
			b[i] += byte(i * int(k+1))
		}
		if all = append(all, b...); k < 100 {
			kept = append(kept, b...)
		}
	}
	if err := errors.Join(os.WriteFile(both, all, 0o600), os.WriteFile(noise, kept, 0o600)); err != nil {
		c.t.Fatal(err)
	}
	url := c.create(both, "--dest", broken, "--volume", "both")
	c.create(noise, "--dest", broken, "--volume", "kept")
	c.run(0, "backup", "delete", url)
	packs, err := filepath.Glob(filepath.Join(broken, "packs", "data", "*", "*"))
	if err != nil || len(packs) == 0 {
		c.t.Fatalf("no data packs: %v", err)
	}
	for _, pack := range packs {
		b, err := os.ReadFile(pack)
		if err != nil {
			c.t.Fatal(err)
		}
		b[50] ^= 1
		if err := os.WriteFile(pack, b, 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	c.run(3, "repo", "prune", broken, "--grace", "0", "--max-unused", "0")
}

// damage breaks data packs and asks the commands that tell of it.
func (c *jsonCommand) damage(repo, url string) {
	c.t.Helper()
	packs, err := filepath.Glob(filepath.Join(repo, "packs", "data", "*", "*"))
	if err != nil || len(packs) == 0 {
		c.t.Fatalf("no data packs: %v", err)
	}
	for _, pack := range packs {
		b, err := os.ReadFile(pack)
		if err != nil {
			c.t.Fatal(err)
		}
		b[50] ^= 1       // in the first record
		b[len(b)-1] ^= 1 // in the trailer
		if err := os.WriteFile(pack, b, 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	c.run(3, "backup", "verify", url)
	c.run(3, "repo", "check", repo, "--stored")
	c.run(3, "repo", "reindex", repo)
	records, err := filepath.Glob(filepath.Join(repo, "volumes", "*"))
	for _, path := range records {
		err = errors.Join(err, os.Remove(path))
	}
	if err == nil {
		records, err = filepath.Glob(filepath.Join(repo, "backups", "*", "*"))
	}
	if err == nil {
		err = os.WriteFile(records[len(records)-1], []byte("torn"), 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.run(3, "repo", "repair", repo, "--from", filepath.Join(repo, "config"))
}

// mountReadyEnv is in the environment of the process that serves a mount.
const mountReadyEnv = "SHALE_MOUNT_READY_FD"

// A mount runs this program again, which in a test is the test.
func init() {
	if os.Getenv(mountReadyEnv) != "" {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
}

func (c *jsonCommand) mount(repo string) {
	c.t.Helper()
	const section = "shale backup mount"
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		c.t.Logf("backup mount is not compared: %v", err)
		for _, row := range c.doc.sections[section] {
			c.doc.seen[section+" "+row.path] = true
		}
		return
	}
	dir := c.t.TempDir()
	c.run(0, "backup", "mount", repo, dir)
	for _, umount := range [][]string{{"fusermount3", "-u", dir}, {"umount", dir}} {
		var out []byte
		if out, err = exec.CommandContext(c.t.Context(), umount[0], umount[1:]...).CombinedOutput(); err == nil {
			return
		}
		err = fmt.Errorf("%v: %w: %s", umount, err, out)
	}
	c.t.Error(err)
}

// keys makes an encrypted repository and asks the commands about its keys.
func (c *jsonCommand) keys(repo string) {
	c.t.Helper()
	mine, others := writeIdentity(c.t, 0), testRecipients[1]
	c.run(0, "repo", "init", repo, "--recipient", testRecipients[0])
	with := []string{"--identity-file", mine}
	added := c.run(0, append([]string{"repo", "key", "add", repo, "--recipient", others, "--label", "laptop"}, with...)...)
	c.run(0, append([]string{"repo", "key", "list", repo}, with...)...)
	foreign, err := os.ReadFile(filepath.Join(repo, "keys", added["id"].(string)))
	if err != nil {
		c.t.Fatal(err)
	}
	c.run(0, append([]string{"repo", "key", "remove", repo, added["id"].(string)}, with...)...)
	c.run(0, append([]string{"repo", "key", "rotate", repo}, with...)...)
	if err := os.WriteFile(filepath.Join(repo, "keys", added["id"].(string)), foreign, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.run(0, append([]string{"repo", "key", "rotate", repo}, with...)...)
	if err := os.WriteFile(filepath.Join(repo, "keys", added["id"].(string)), foreign[:100], 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.run(3, append([]string{"repo", "key", "list", repo}, with...)...)
}
