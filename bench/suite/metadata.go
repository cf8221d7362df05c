package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// metadataMappings is the size of the pool for which there is a target.
const metadataMappings = "16777216"

// metadata runs bench/metadiff and keeps its table.
func (s *suite) metadata(ctx context.Context) error {
	if s.o.metadiff == "" {
		s.note("the difference of thin metadata is left out: no metadiff binary")
		return nil
	}
	if _, err := exec.LookPath("thin_delta"); err != nil {
		s.note("the difference of thin metadata is left out: %v", err)
		return nil
	}
	args := []string{s.o.metadiff, "-mappings", "1048576,4194304," + metadataMappings, "-dir", s.dir, "-repeat", strconv.Itoa(s.o.rounds)}
	out, err := output(ctx, command{argv: args})
	if err != nil {
		return err
	}
	s.meta = out
	s.ratio, err = metadataRatio(out)
	return err
}

// metadataRatio finds the ratio of CPU times in metadiff's table.
func metadataRatio(table string) (float64, error) {
	column := -1
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		for i, c := range cells {
			switch c = strings.TrimSpace(c); {
			case c == "CPU ratio":
				column = i
			case i == 1 && c == metadataMappings && column > 0 && column < len(cells):
				return strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(cells[column]), "x"), 64)
			}
		}
	}
	return 0, fmt.Errorf("metadiff's table has no ratio for %s mappings", metadataMappings)
}
