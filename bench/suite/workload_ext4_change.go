package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// change makes the second state. Its steps scale with the image: at 2 GiB they are 350 writes into the database, 180 sources
// rewritten, 40 logs appended to, 250 files deleted, 5 MiB of new files and 2 moved copies: about 1 % of the image.
func (e *ext4Writer) change() error {
	for _, step := range []func() error{e.changeTable, e.edit, e.appendLogs, e.remove, e.addNew} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// times scales a number of steps that is meant for 2 GiB.
func (e *ext4Writer) times(n int64) int { return int(max(1, n*e.size/(2<<30))) }

// changeTable writes pages in place.
func (e *ext4Writer) changeTable() error {
	f, err := os.OpenFile(filepath.Join(e.root, "main.db"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	buf := make([]byte, 16<<10)
	for range e.times(350) {
		n := []int64{4096, 8192, 8192, 16384}[e.dice.n(4)]
		piece{kind: contentTable, seed: e.dice.src.Uint64()}.fill(buf[:n])
		off := int64(e.dice.n(int(e.dbSize()/4096)-4)) * 4096
		if _, err := f.WriteAt(buf[:n], off); err != nil {
			return closing(err, f)
		}
	}
	return f.Close()
}

// edit inserts a line into sources, as editors do: the new text is written beside the old and renamed over it.
func (e *ext4Writer) edit() error {
	var small []placedFile
	for _, f := range e.text {
		if f.size < 64<<10 {
			small = append(small, f)
		}
	}
	if len(small) == 0 {
		return errors.New("no sources of this machine are in the image: is there a Go tree?")
	}
	for range e.times(180) {
		path := filepath.Join(e.root, small[e.dice.n(len(small))].path)
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		cut := e.dice.n(len(b))
		edited := append(append(append([]byte{}, b[:cut]...), "// edited line\n"...), b[cut:]...)
		if err := os.WriteFile(path+".tmp", edited, 0o644); err != nil {
			return err
		}
		if err := os.Rename(path+".tmp", path); err != nil {
			return err
		}
	}
	return nil
}

func (e *ext4Writer) appendLogs() error {
	for i := range 40 {
		f, err := os.OpenFile(filepath.Join(e.root, fmt.Sprintf("log/%d.log", i)), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		b := make([]byte, int(e.size/200000)+e.dice.n(int(e.size/60000)))
		piece{kind: contentText, seed: e.dice.src.Uint64()}.fill(b)
		_, err = f.Write(b)
		if err := closing(err, f); err != nil {
			return err
		}
	}
	return nil
}

func (e *ext4Writer) remove() error {
	for range e.times(250) {
		err := os.Remove(filepath.Join(e.root, e.text[e.dice.n(len(e.text))].path))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// addNew adds random files, files of this machine and copies of what is there: deduplication should see the last.
func (e *ext4Writer) addNew() error {
	for i := range 3 {
		if err := e.write(fmt.Sprintf("new/%d.jpg", i), piece{kind: contentRandom, seed: e.dice.src.Uint64(), len: e.size / 2048}); err != nil {
			return err
		}
	}
	var placed []placedFile
	if err := e.copyFrom("/usr/share", "new", e.size/1024, nil, &placed); err != nil {
		return err
	}
	for i := range 2 {
		b, err := os.ReadFile(filepath.Join(e.root, fmt.Sprintf("media/%d.jpg", i)))
		if err != nil {
			return err
		}
		if err := e.put(fmt.Sprintf("new/copy%d.jpg", i), b); err != nil {
			return err
		}
	}
	return nil
}
