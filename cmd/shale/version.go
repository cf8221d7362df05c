package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
)

// version says which shale this is, as the Go toolchain noted it in the binary.
type version struct {
	Version  string     `json:"version"`            // of the module, or "(devel)"
	Revision string     `json:"revision,omitempty"` // git commit
	Time     *time.Time `json:"time,omitempty"`     // of that commit
	Modified bool       `json:"modified"`           // built from a tree with changes since that commit
	Go       string     `json:"go"`
	Platform string     `json:"platform"`
}

func buildVersion() version {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return versionOf(info)
}

func versionOf(info *debug.BuildInfo) version {
	v := version{Version: info.Main.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if v.Version == "" {
		v.Version = "(devel)"
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		case "vcs.time":
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
				v.Time = &t
			}
		}
	}
	return v
}

// String is one line: the version, the commit and the toolchain.
func (v version) String() string {
	s := "shale " + v.Version
	if v.Revision != "" {
		s += fmt.Sprintf(", commit %.12s", v.Revision)
		if v.Modified {
			s += " with changes"
		}
	}
	return fmt.Sprintf("%s, %s %s", s, v.Go, v.Platform)
}

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which shale this is",
		Long: `Say which shale this is: its version, the commit that it was built from, and the Go toolchain. 'shale --version' is the same.

Quote it when you report a fault.`,
		Example: `  shale version --json`,
		Args:    exactArgs(),
		RunE:    func(*cobra.Command, []string) error { return a.printVersion() },
	}
}

func (a *app) printVersion() error {
	v := buildVersion()
	if a.json {
		return a.printJSON(v)
	}
	_, err := fmt.Fprintln(a.stdout, v)
	return err
}
