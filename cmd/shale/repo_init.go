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
	cmd := &cobra.Command{
		Use:   "init URL",
		Short: "Make a repository",
		Long: `Make a repository, and print its URL. Its folder is made if need be.

--compression is what backups use unless they say otherwise; what is stored stays as it is. s2 is for fast networks and disks, zstd:1
stores less for some more CPU, zstd:4 takes several times as much.`,
		Example: `  shale repo init /srv/backups
  shale repo init vfs:///srv/backups --compression s2`,
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
			cfg, err := engine.InitRepository(cmd.Context(), l, a.backendOptions(), chunkstore.InitOptions{
				Compression: chunkstore.Compression(compression), PackBytes: packMiB << 20,
			})
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(struct {
					URL string `json:"url"`
					ID  string `json:"id"`
				}{l.String(), cfg.ID})
			}
			_, err = fmt.Fprintf(a.stdout, "%s\n", l)
			return err
		},
	}
	cmd.Flags().StringVar(&compression, "compression", string(chunkstore.DefaultCompression), "`CODEC`: none, s2 (fast), zstd:1 to zstd:4 (smallest)")
	completeCompression(cmd)
	cmd.Flags().IntVar(&packMiB, "pack-size", 16, "close packs at so many `MiB`, 1 to 256")
	return cmd
}
