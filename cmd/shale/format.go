package main

import (
	"errors"
	"fmt"
	"io"
)

// size writes a number of bytes for a person.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	div, exp := int64(unit), 0
	for m := n / unit; m >= unit && exp < 5; m /= unit {
		div *= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", float64(n)/float64(div), "KMGTPE"[exp])
}

// closeInto closes c and adds its error to *err.
func closeInto(err *error, c io.Closer) { *err = errors.Join(*err, c.Close()) }
