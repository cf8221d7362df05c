package chunkstore

import (
	"fmt"
)

// sealer turns records into their stored form and back. It is chosen once for a repository; the scheme byte in each object's
// header says which one wrote it.
type sealer interface {
	scheme() byte
	// overhead is by how many bytes a sealed record is longer than a plain one.
	overhead() int
	// mark makes salt, of random bytes, one for new objects.
	mark(salt *[saltLen]byte)
	// box is for the records of one object; its keys depend on the kind and on the salt, which is random for each object.
	box(kind packKind, salt [saltLen]byte) (box, error)
}

// box seals the records of one object. off, the record's place in the object, is unique in it. aad is authenticated too. What open
// takes may be used by many goroutines; seal only by one, or an object would have two records in one place.
type box interface {
	// seal appends the sealed form of plain to dst.
	seal(dst, plain []byte, off uint64, aad recordAAD) []byte
	// open appends the plain form of sealed to dst; an error means that the bytes, their place or aad are not what was sealed.
	open(dst, sealed []byte, off uint64, aad recordAAD) ([]byte, error)
}

const (
	saltLen = 16

	schemePlain = 0
	schemeAES   = 1 // seal_aes.go
)

// plainSealer stores records as they are.
type plainSealer struct{}

func (plainSealer) scheme() byte                             { return schemePlain }
func (plainSealer) overhead() int                            { return 0 }
func (plainSealer) mark(*[saltLen]byte)                      {}
func (plainSealer) box(packKind, [saltLen]byte) (box, error) { return plainBox{}, nil }

type plainBox struct{}

func (plainBox) seal(dst, plain []byte, _ uint64, _ recordAAD) []byte {
	return append(dst, plain...)
}

func (plainBox) open(dst, sealed []byte, _ uint64, _ recordAAD) ([]byte, error) {
	return append(dst, sealed...), nil
}

// checkScheme refuses an object that another sealer wrote: in an encrypted repository a plain object is a forgery.
func checkScheme(s sealer, got byte) error {
	if got != s.scheme() {
		return fmt.Errorf("object is sealed with scheme %d, the repository uses %d", got, s.scheme())
	}
	return nil
}
