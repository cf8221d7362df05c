package main

import (
	"github.com/spf13/pflag"
)

// fromHelp is the part of --help about the keys of two repositories.
const fromHelp = `
Passwords and private keys that are given, or in the environment, are for both repositories. With --from-password-file,
--from-password-command or --from-identity-file the one that is copied from has its own. If it is not encrypted and the other is, or one is
meant to be, --from-allow-plain says so.`

// fromSecrets are the secrets of the repository that is copied from, where they differ from the other's.
type fromSecrets struct{ own secrets }

func (s *fromSecrets) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&s.own.passwordFiles, "from-password-file", nil, "as --password-file, of the repository that is copied from: its password is the line in `FILE`")
	f.StringVar(&s.own.passwordCommand, "from-password-command", "", "as --password-command, of the repository that is copied from: the line that `COMMAND` prints")
	f.StringArrayVar(&s.own.identityFiles, "from-identity-file", nil, "as --identity-file, of the repository that is copied from: private keys are in `FILE`")
	f.BoolVar(&s.own.allowPlain, "from-allow-plain", false, "copy from a repository that is not encrypted although a password or private key is given")
}

// use makes them the ones that a repository is opened with, until the function that it returns is called.
func (s *fromSecrets) use(a *app) (restore func()) {
	general := a.secrets
	if len(s.own.passwordFiles) > 0 || s.own.passwordCommand != "" || len(s.own.identityFiles) > 0 {
		a.secrets.passwordFiles, a.secrets.passwordCommand, a.secrets.identityFiles = s.own.passwordFiles, s.own.passwordCommand, s.own.identityFiles
		a.secrets.prefix = "from-"
	}
	a.secrets.allowPlain = general.allowPlain || s.own.allowPlain
	return func() {
		general.stdin = a.secrets.stdin
		a.secrets = general
	}
}
