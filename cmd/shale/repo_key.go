package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
)

func newRepoKeyCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "List, add, remove and rotate the keys of an encrypted repository",
		Long: `List, add, remove and rotate the keys of an encrypted repository.

Each key is a password or a public key (age or SSH). Any one of them opens the repository. To change a password, add the new one and
remove the old one.`,
	}
	asGroup(cmd)
	cmd.AddCommand(newKeyListCommand(a), newKeyAddCommand(a), newKeyRemoveCommand(a), newKeyRotateCommand(a))
	return cmd
}

// keyJSON is a key as it is printed.
type keyJSON struct {
	ID        string    `json:"id"`
	Kind      string    `json:"kind"`
	Label     string    `json:"label,omitempty"`
	Recipient string    `json:"recipient,omitempty"`
	Created   time.Time `json:"created"`
}

func newKeyJSON(k *chunkstore.Key) keyJSON {
	return keyJSON{k.ID, k.Kind, k.Label, k.Recipient, k.Created}
}

func newKeyJSONs(keys []chunkstore.Key) []keyJSON {
	all := make([]keyJSON, len(keys))
	for i := range keys {
		all[i] = newKeyJSON(&keys[i])
	}
	return all
}

func newKeyListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list URL",
		Short: "List the keys that open a repository",
		Long: `List the keys that open a repository. * marks the one that opened it now. A key that is not trusted was put there by somebody who did not
have the newest master key: it is passed over by 'repo key rotate'. Remove it if nobody knows it.

The fingerprint is that of the master key: where it differs from what another host prints, that host has another repository.

Exit code 3: a key cannot be read.`,
		Example: `  shale repo key list /srv/backups`,
		Args:    exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r, _, err := a.openRepository(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			keys, damage, err := r.Keys(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.printKeys(r, keys, damage); err != nil {
				return err
			}
			if len(damage) > 0 {
				return fmt.Errorf("%w: %d keys cannot be read", errDamage, len(damage))
			}
			return nil
		},
	}
}

func (a *app) printKeys(r *chunkstore.Repository, keys []chunkstore.KeyStatus, damage []error) error {
	if a.json {
		type status struct {
			keyJSON
			Current bool `json:"current"`
			Trusted bool `json:"trusted"`
		}
		answer := struct {
			Fingerprint string   `json:"fingerprint"`
			Rotations   int      `json:"rotations"`
			Keys        []status `json:"keys"`
			Damage      []string `json:"damage"`
		}{r.Fingerprint(), r.Epoch(), []status{}, []string{}}
		for i := range keys {
			k := &keys[i]
			answer.Keys = append(answer.Keys, status{newKeyJSON(&k.Key), k.Current, k.Trusted})
		}
		for _, err := range damage {
			answer.Damage = append(answer.Damage, err.Error())
		}
		return a.printJSON(answer)
	}
	if _, err := fmt.Fprintf(a.stdout, "fingerprint %s, %d rotations\n\n", r.Fingerprint(), r.Epoch()); err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, " \tKEY\tKIND\tCREATED\tLABEL\tPUBLIC KEY")
	for i := range keys {
		k := &keys[i]
		mark := " "
		switch {
		case k.Current:
			mark = "*"
		case !k.Trusted:
			mark = "not trusted"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", mark, k.ID, k.Kind, k.Created.UTC().Format(time.RFC3339), k.Label, k.Recipient)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, err := range damage {
		fmt.Fprintf(a.stdout, "damaged: %v\n", err)
	}
	return nil
}

func newKeyAddCommand(a *app) *cobra.Command {
	var recipient, label, file, command string
	cmd := &cobra.Command{
		Use:   "add URL",
		Short: "Let another password or public key open a repository",
		Long: `Let another password or public key open a repository, and print the new key's ID. Nothing else in the repository is touched.

The repository is opened with a key that it has (--password-file and so on). The new password is asked for twice on a terminal, or is
what --new-password-file or --new-password-command says; --recipient adds a public key instead.`,
		Example: `  shale repo key add /srv/backups --label laptop
  shale repo key add /srv/backups --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p
  shale repo key add /srv/backups --recipient "$(cat ~/.ssh/id_ed25519.pub)"`,
		Args: exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var public []string
			var sources []passwordSource
			if recipient != "" {
				public = []string{recipient}
			}
			if file != "" {
				sources = append(sources, func() (string, error) { return a.readPassword("--new-password-file", file) })
			}
			if command != "" {
				sources = append(sources, func() (string, error) { return a.runPasswordCommand("--new-password-command", command) })
			}
			if len(public)+len(sources) > 1 {
				return usagef(cmd, "--recipient, --new-password-file and --new-password-command exclude each other: a key has one")
			}
			r, _, err := a.openRepository(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			to, err := a.recipients(cmd, public, sources)
			if err != nil {
				return err
			}
			k, err := r.AddKey(cmd.Context(), to[0], label)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(newKeyJSON(k))
			}
			_, err = fmt.Fprintln(a.stdout, k.ID)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&recipient, "recipient", "", "the new key is for this `PUBLIC-KEY`: age1…, ssh-ed25519 … or ssh-rsa …")
	f.StringVar(&label, "label", "", "`TEXT` that says whose key it is; it is not secret")
	f.StringVar(&file, "new-password-file", "", "the new password is the line in `FILE`, - for stdin")
	f.StringVar(&command, "new-password-command", "", "the new password is the line that `COMMAND` prints")
	return cmd
}

func newKeyRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "remove URL KEY",
		Short: "Take away a key",
		Long: `Take away a key, named by its ID or the first digits of it. The last one stays.

Whoever opened the repository with it may have kept the master key, and can then read what is stored now and what is stored later. 'shale
repo key rotate' afterwards keeps them from the latter; from the former nothing does, if they can still read the repository's objects.`,
		Example: `  shale repo key remove /srv/backups 3f2a`,
		Args:    exactArgs("URL", "KEY"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r, _, err := a.openRepository(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			id, err := findKey(cmd.Context(), r, args[1])
			if err != nil {
				return err
			}
			if err := r.RemoveKey(cmd.Context(), id); err != nil {
				return err
			}
			a.note("removed. 'shale repo key rotate' keeps those who had it from what is stored from now on.")
			if a.json {
				return a.printJSON(struct {
					ID string `json:"id"`
				}{id})
			}
			_, err = fmt.Fprintln(a.stdout, id)
			return err
		},
	}
}

// findKey completes a key's ID.
func findKey(ctx context.Context, r *chunkstore.Repository, prefix string) (string, error) {
	keys, damage, err := r.Keys(ctx)
	if err != nil {
		return "", err
	}
	found := ""
	for i := range keys {
		if !strings.HasPrefix(keys[i].ID, strings.ToLower(prefix)) || prefix == "" {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("several keys begin with %s", prefix)
		}
		found = keys[i].ID
	}
	if found == "" && len(damage) > 0 {
		return "", fmt.Errorf("no key that can be read begins with %s; %d cannot be read", prefix, len(damage))
	}
	if found == "" {
		return "", &chunkstore.NotFoundError{What: "key", Name: prefix}
	}
	return found, nil
}

func newKeyRotateCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rotate URL",
		Short: "Encrypt what is stored from now on under a new master key",
		Long: `Encrypt what is stored from now on under a new master key, which every key of the repository is given. No password but the one that opens
the repository is needed, and nothing is written anew.

It keeps those whose key was removed before from reading what is stored from now on. It does not take from them what is stored already: it
stays under the master keys that they know, for as long as they can read the repository's objects; nor does it change what they could do
by writing to it. Only 'shale repo init --encrypt' and copying the backups there does that. Processes that have the repository open go on
with the old master key until they end.`,
		Example: `  shale repo key remove /srv/backups 3f2a
  shale repo key rotate /srv/backups`,
		Args: exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r, _, err := a.openRepository(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			rot, err := r.Rotate(cmd.Context())
			if err != nil {
				return err
			}
			for i := range rot.Left {
				a.note("key %s was not given the new master key: it is not trusted, or was added meanwhile. Remove it, and add it again if it is wanted.", rot.Left[i].ID)
			}
			if a.json {
				return a.printJSON(struct {
					Rotations int       `json:"rotations"`
					Keys      []keyJSON `json:"keys"`
					Left      []keyJSON `json:"left"`
				}{rot.Epoch, newKeyJSONs(rot.Keys), newKeyJSONs(rot.Left)})
			}
			for i := range rot.Keys {
				k := newKeyJSON(&rot.Keys[i])
				if _, err := fmt.Fprintf(a.stdout, "%s  %s %s\n", k.ID, k.Kind, k.Label); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
