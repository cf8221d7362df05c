package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shalebackup/shale/chunkstore"
	"github.com/shalebackup/shale/engine"
)

func newRepoInitCommand(a *app) *cobra.Command {
	var compression string
	var packMiB int
	var encrypt bool
	var public []string
	cmd := &cobra.Command{
		Use:   "init URL",
		Short: "Make a repository",
		Long: `Make a repository, and print its URL. Its folder is made if need be.

--compression is what backups use unless they say otherwise; what is stored stays as it is. s2 is for fast networks and disks, zstd:1
stores less for some more CPU, zstd:4 takes several times as much.

--encrypt seals everything in it with AES-256-GCM under a random master key, which only the password, or the private keys that belong to
the --recipient options, can open; 'shale repo key' adds and removes them later. The password is asked for twice on a terminal, or is what
--password-file, --password-command or the environment says. Whoever loses every one of them loses every backup: nobody can open it then.`,
		Example: `  shale repo init /srv/backups
  shale repo init vfs:///srv/backups --compression s2
  shale repo init /srv/backups --encrypt
  shale repo init /srv/backups --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p`,
		Args: exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.parseLocation(args[0])
			if err == nil && l.Backup != "" {
				err = fmt.Errorf("%w: %s names a backup", engine.ErrURL, args[0])
			}
			if err != nil {
				return err
			}
			if err := checkCompression(cmd, compression); err != nil {
				return err
			}
			if packMiB < 1 || packMiB > 256 {
				return usagef(cmd, "--pack-size is %d MiB, want 1 to 256", packMiB)
			}
			to, err := a.initRecipients(cmd, encrypt, public)
			if err != nil {
				return err
			}
			cache, err := a.cacheFolder()
			if err != nil {
				return err
			}
			cfg, err := engine.InitRepository(cmd.Context(), l, a.backendOptions(), chunkstore.InitOptions{
				Compression: chunkstore.Compression(compression), PackBytes: packMiB << 20, Recipients: to, CacheDir: cache,
			})
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(struct {
					URL       string `json:"url"`
					ID        string `json:"id"`
					Encrypted bool   `json:"encrypted"`
				}{l.String(), cfg.ID, cfg.Sealed()})
			}
			_, err = fmt.Fprintf(a.stdout, "%s\n", l)
			return err
		},
	}
	cmd.Flags().StringVar(&compression, "compression", string(chunkstore.DefaultCompression), "`CODEC`: none, s2 (fast), zstd:1 to zstd:4 (smallest)")
	completeCompression(cmd)
	cmd.Flags().BoolVar(&encrypt, "encrypt", false, "seal everything in it")
	cmd.Flags().StringArrayVar(&public, "recipient", nil, "seal everything, and let who has the private key of this `PUBLIC-KEY` open it: age1…, ssh-ed25519 … or ssh-rsa …; may be repeated")
	cmd.Flags().IntVar(&packMiB, "pack-size", 16, "close packs at so many `MiB`, 1 to 256")
	return cmd
}

// initRecipients are who will be able to open the new repository; none when it is not to be encrypted.
func (a *app) initRecipients(cmd *cobra.Command, encrypt bool, public []string) ([]chunkstore.Recipient, error) {
	sources := a.passwordSources()
	switch {
	case !encrypt && len(public) == 0 && len(sources) > 0 && !a.secrets.allowPlain:
		return nil, usagef(cmd, "a password is given, and not --encrypt: give that too, or --allow-plain")
	case !encrypt && len(public) == 0:
		return nil, nil
	case len(sources) > 1:
		return nil, usagef(cmd, "several passwords are given: begin with one, and add others with 'shale repo key add'")
	}
	return a.recipients(cmd, public, sources)
}
