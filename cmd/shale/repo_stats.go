package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func newRepoStatsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "stats URL",
		Short: "Count what a repository holds",
		Long: `Count what a repository holds: backups, packs, chunks, and their bytes. Plain bytes are those of all chunks before compression, each
counted once. Only listings and the index are read.`,
		Example: `  shale repo stats /srv/backups --json`,
		Args:    exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r, _, err := a.openRepository(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer closeInto(&err, r)
			s, err := r.Stats(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(s)
			}
			w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			sealed := "not encrypted"
			if s.Encrypted {
				sealed = "encrypted"
			}
			fmt.Fprintf(w, "repository\t%s\nid\t%s\nformat\t%d, %s, %s\n", s.Location, s.ID, s.Version, s.Compression, sealed)
			fmt.Fprintf(w, "backups\t%d of %d volumes\n", s.Backups, s.Volumes)
			fmt.Fprintf(w, "stored\t%s\n", size(s.Stored))
			fmt.Fprintf(w, "data packs\t%d, %s\n", s.DataPacks.Objects, size(s.DataPacks.Bytes))
			fmt.Fprintf(w, "tree packs\t%d, %s\n", s.TreePacks.Objects, size(s.TreePacks.Bytes))
			if s.Condemned.Objects > 0 {
				fmt.Fprintf(w, "condemned\t%d of them, %s, wait to be deleted by a prune\n", s.Condemned.Objects, size(s.Condemned.Bytes))
			}
			fmt.Fprintf(w, "index\t%d segments, %s; %s of it here\n", s.Index.Objects, size(s.Index.Bytes), size(s.IndexLocal))
			fmt.Fprintf(w, "chunks\t%d, %s plain\n", s.Chunks, size(s.Plain))
			fmt.Fprintf(w, "tree nodes\t%d\n", s.Nodes)
			return w.Flush()
		},
	}
}
