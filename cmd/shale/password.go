package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/shalebackup/shale/chunkstore"
)

const (
	passwordEnv     = "SHALE_PASSWORD"
	passwordFileEnv = "SHALE_PASSWORD_FILE"
	identityFileEnv = "SHALE_IDENTITY_FILE"

	maxSecretFile = 1 << 20 // bytes
	promptTries   = 3
)

// secrets are where the passwords and private keys of encrypted repositories come from. None is ever an argument.
type secrets struct {
	passwordFiles   []string // --password-file
	passwordCommand string   // --password-command
	identityFiles   []string // --identity-file
	allowPlain      bool     // --allow-plain
	work            int      // scrypt's; 0: the default, which tests do not have time for
	fromStdin       bool     // --secrets-from-stdin: a handedSecrets
	prefix          string   // of the names of these flags: "", or "from-" (copy_from.go)

	stdin []byte          // read once: two repositories may be opened with it
	used  handedSecrets   // what this process has read, for one that it starts
	stop  <-chan struct{} // closed when the command is interrupted
}

// handedSecrets is what the process that serves a mount is handed through a pipe, as JSON: it has no terminal to ask at.
type handedSecrets struct {
	Passwords   []string `json:"passwords"`
	Identities  [][]byte `json:"identities"`  // content of files
	Passphrases []string `json:"passphrases"` // of SSH keys, in the order in which they were asked for
}

func (s *secrets) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&s.passwordFiles, "password-file", nil, "the password of an encrypted repository is the line in `FILE`, - for stdin; more than one are tried in turn")
	f.StringVar(&s.passwordCommand, "password-command", "", "the password is the line that `COMMAND` prints; /bin/sh runs it")
	f.StringArrayVar(&s.identityFiles, "identity-file", nil, "private keys are in `FILE`: age's (age-keygen makes them), or one SSH key")
	f.BoolVar(&s.allowPlain, "allow-plain", false, "use a repository that is not encrypted although a password or private key is given")
	f.BoolVar(&s.fromStdin, "secrets-from-stdin", false, "")
	_ = f.MarkHidden("secrets-from-stdin")
}

// flag is a flag's name, for messages.
func (s *secrets) flag(name string) string { return "--" + s.prefix + name }

// passwordSource gives one password, when it is needed.
type passwordSource func() (string, error)

// passwordSources are where the user said that a password is; flags go before the environment.
func (a *app) passwordSources() (all []passwordSource) {
	s := a.secrets
	for _, file := range s.passwordFiles {
		all = append(all, func() (string, error) { return a.readPassword(s.flag("password-file"), file) })
	}
	if s.passwordCommand != "" {
		all = append(all, func() (string, error) { return a.runPasswordCommand(s.flag("password-command"), s.passwordCommand) })
	}
	if len(all) > 0 {
		return all
	}
	if p := os.Getenv(passwordEnv); p != "" {
		return []passwordSource{func() (string, error) { return onePassword("$"+passwordEnv, []byte(p)) }}
	}
	if file := os.Getenv(passwordFileEnv); file != "" {
		return []passwordSource{func() (string, error) { return a.readPassword("$"+passwordFileEnv, file) }}
	}
	return nil
}

// credentials are what this process has to open encrypted repositories with. A password is read, or asked for, when one is needed.
func (a *app) credentials() (c chunkstore.Credentials, err error) {
	s := &a.secrets
	if s.fromStdin {
		return a.handedCredentials()
	}
	files := s.identityFiles
	if file := os.Getenv(identityFileEnv); file != "" && len(files) == 0 {
		files = []string{file}
	}
	s.used = handedSecrets{}
	for _, file := range files {
		b, err := a.readSecretFile(file)
		if err != nil {
			return c, fmt.Errorf("%s: %w", s.flag("identity-file"), err)
		}
		ids, err := chunkstore.ParseIdentities(b, func() ([]byte, error) {
			p, err := a.prompt("Passphrase of " + file + ": ")
			s.used.Passphrases = append(s.used.Passphrases, p)
			return []byte(p), err
		})
		if err != nil {
			return c, fmt.Errorf("%s %s: %w", s.flag("identity-file"), file, err)
		}
		s.used.Identities = append(s.used.Identities, b)
		c.Identities = append(c.Identities, ids...)
	}
	sources := a.passwordSources()
	c.Sealed = (len(sources) > 0 || len(files) > 0) && !s.allowPlain
	switch {
	case len(sources) > 0:
		c.Passphrases = a.using(func(yield func(string, error) bool) {
			for _, from := range sources {
				if !yield(from()) {
					return
				}
			}
		})
	case len(files) == 0 && a.terminal() != nil:
		c.Passphrases = a.using(a.promptTries)
	}
	return c, nil
}

// using notes the passwords that are tried.
func (a *app) using(all iter.Seq2[string, error]) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for p, err := range all {
			if err == nil {
				a.secrets.used.Passwords = append(a.secrets.used.Passwords, p)
			}
			if !yield(p, err) {
				return
			}
		}
	}
}

func (a *app) promptTries(yield func(string, error) bool) {
	for try := range promptTries {
		if try > 0 {
			fmt.Fprintln(a.stderr, "Wrong password.")
		}
		if !yield(a.prompt("Password of " + a.location.String() + ": ")) {
			return
		}
	}
}

// handedCredentials are those that the process which started this one has used.
func (a *app) handedCredentials() (c chunkstore.Credentials, err error) {
	var h handedSecrets
	if err := json.NewDecoder(io.LimitReader(a.stdin, 16*maxSecretFile)).Decode(&h); err != nil {
		return c, errors.New("--secrets-from-stdin is for shale's own processes")
	}
	c.Sealed = (len(h.Passwords) > 0 || len(h.Identities) > 0) && !a.secrets.allowPlain
	for _, b := range h.Identities {
		ids, err := chunkstore.ParseIdentities(b, func() ([]byte, error) {
			if len(h.Passphrases) == 0 {
				return nil, errors.New("its passphrase was not handed over")
			}
			p := h.Passphrases[0]
			h.Passphrases = h.Passphrases[1:]
			return []byte(p), nil
		})
		if err != nil {
			return c, err
		}
		c.Identities = append(c.Identities, ids...)
	}
	if len(h.Passwords) > 0 {
		c.Passphrases = func(yield func(string, error) bool) {
			for _, p := range h.Passwords {
				if !yield(p, nil) {
					return
				}
			}
		}
	}
	return c, nil
}

// handOver adds to a command line what opens the same repository without asking anybody, and gives what to write to its stdin.
func (a *app) handOver(args []string) ([]string, []byte, error) {
	if a.secrets.allowPlain {
		args = append(args, "--allow-plain")
	}
	if len(a.secrets.used.Passwords) == 0 && len(a.secrets.used.Identities) == 0 {
		return args, nil, nil
	}
	b, err := json.Marshal(a.secrets.used)
	return append(args, "--secrets-from-stdin"), b, err
}

// recipients are whom a new key is for: the public keys, and the password of the sources. With neither, a password is asked for twice.
func (a *app) recipients(cmd *cobra.Command, public []string, sources []passwordSource) (to []chunkstore.Recipient, err error) {
	for _, s := range public {
		r, err := chunkstore.ParseRecipient(s)
		if err != nil {
			return nil, usagef(cmd, "--recipient: %w", err)
		}
		to = append(to, r)
	}
	if len(sources) == 0 && len(to) == 0 {
		if a.terminal() == nil {
			return nil, usagef(cmd, "no password: there is no terminal to ask at, and no option or environment variable gives one, or a public key")
		}
		sources = []passwordSource{a.newPassword}
	}
	for _, from := range sources {
		p, err := from()
		if err != nil {
			return nil, err
		}
		r, err := chunkstore.PassphraseRecipient(p, a.secrets.work)
		if err != nil {
			return nil, err
		}
		to = append(to, r)
	}
	return to, nil
}

// newPassword asks for a password twice.
func (a *app) newPassword() (string, error) {
	p, err := a.prompt("New password: ")
	if err != nil {
		return "", err
	}
	if p == "" {
		return "", errors.New("the password is empty")
	}
	again, err := a.prompt("The same again: ")
	if err == nil && again != p {
		err = errors.New("the two passwords differ")
	}
	return p, err
}

// terminal is where the user can be asked; nil when stdin is none.
func (a *app) terminal() *os.File {
	if f, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// prompt asks for a line that is not shown.
func (a *app) prompt(text string) (p string, err error) {
	f := a.terminal()
	if f == nil {
		return "", errors.New("there is no terminal to ask for a password at")
	}
	fd := int(f.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", fmt.Errorf("mode of the terminal: %w", err)
	}
	silent := *before
	silent.Lflag = silent.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
	silent.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &silent); err != nil {
		return "", fmt.Errorf("mode of the terminal: %w", err)
	}
	defer func() {
		fmt.Fprintln(a.stderr)
		err = errors.Join(err, unix.IoctlSetTermios(fd, unix.TCSETS, before))
	}()
	fmt.Fprint(a.stderr, text)
	type answer struct {
		p   string
		err error
	}
	answers := make(chan answer, 1) // when interrupted, its reader is left behind: the process is about to end
	go func() {
		p, err := readLine(f)
		answers <- answer{p, err}
	}()
	select {
	case got := <-answers:
		return got.p, got.err
	case <-a.secrets.stop:
		return "", context.Canceled
	}
}

// readLine reads to the end of a line and not beyond.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for c := make([]byte, 1); len(line) < maxSecretFile; {
		n, err := r.Read(c)
		switch {
		case n > 0 && c[0] == '\n':
			return string(line), nil
		case n > 0:
			line = append(line, c[0])
		case errors.Is(err, io.EOF):
			return "", errors.New("no password was typed")
		case err != nil:
			return "", err
		}
	}
	return "", errors.New("the line is too long for a password")
}

func (a *app) readPassword(flag, file string) (string, error) {
	b, err := a.readSecretFile(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	return onePassword(flag+" "+file, b)
}

func (a *app) runPasswordCommand(flag, command string) (string, error) {
	cmd := exec.Command("/bin/sh", "-c", command)
	cmd.Stdin, cmd.Stderr = os.Stdin, a.stderr
	done := make(chan struct{})
	defer close(done)
	var out bytes.Buffer
	cmd.Stdout = &limitedWriter{&out, maxSecretFile}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	go func() {
		select {
		case <-a.secrets.stop:
			_ = cmd.Process.Kill()
		case <-done:
		}
	}()
	if err := cmd.Wait(); err != nil { // what it printed may be half a password
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	return onePassword(flag, out.Bytes())
}

// limitedWriter fails when more than n bytes are written.
type limitedWriter struct {
	w io.Writer
	n int
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	if l.n -= len(p); l.n < 0 {
		return 0, errors.New("too much output for a password")
	}
	return l.w.Write(p)
}

// readSecretFile reads a file of at most maxSecretFile; - is stdin.
func (a *app) readSecretFile(file string) (b []byte, err error) {
	in := a.stdin
	if file == "-" {
		if a.secrets.stdin != nil {
			return a.secrets.stdin, nil
		}
		defer func() { a.secrets.stdin = b }()
	} else {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err = io.ReadAll(io.LimitReader(in, maxSecretFile+1))
	if err == nil && len(b) > maxSecretFile {
		err = fmt.Errorf("%s: more than %d bytes", file, maxSecretFile)
	}
	return b, err
}

// onePassword takes the line end away.
func onePassword(from string, b []byte) (string, error) {
	p := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	switch {
	case p == "":
		return "", fmt.Errorf("%s: the password is empty", from)
	case strings.ContainsAny(p, "\r\n\x00"):
		return "", fmt.Errorf("%s: a password is one line", from)
	}
	return p, nil
}
