package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// makeTree writes a folder of n small files, 100 to a folder: the same on every machine.
func makeTree(dir string, seed uint64, n int) error {
	d := newDice(seed, 6)
	var buf []byte
	for i := range n {
		size := int64(200 + d.n(8000))
		if d.n(50) == 0 {
			size *= 40
		}
		if i%100 == 0 {
			if err := os.MkdirAll(treeFolder(dir, i), 0o755); err != nil {
				return err
			}
		}
		buf = append(buf[:0], make([]byte, size)...)
		piece{kind: content(d.n(4)), seed: d.src.Uint64()}.fill(buf)
		if err := os.WriteFile(treeFile(dir, i), buf, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func treeFolder(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("%02d", i/100%37), fmt.Sprint(i/100))
}

func treeFile(dir string, i int) string {
	return filepath.Join(treeFolder(dir, i), fmt.Sprintf("file%d.txt", i))
}

// changeTree rewrites, removes and adds about 1 % of the files.
func changeTree(dir string, seed uint64, n int) error {
	d := newDice(seed, 7)
	for range max(1, n/100) {
		path := treeFile(dir, d.n(n))
		var err error
		switch d.n(4) {
		case 0:
			err = os.RemoveAll(path)
		case 1:
			path += ".new"
			fallthrough
		default:
			b := make([]byte, 200+d.n(8000))
			piece{kind: contentText, seed: d.src.Uint64()}.fill(b)
			err = os.WriteFile(path, b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
