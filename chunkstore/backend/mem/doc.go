// Package mem is a backend in memory, for tests and for repositories that need not outlive the process.
//
// It keeps the contract of package backend to the letter, also where other backends are more lenient: a name that is a folder of
// another ("a" beside "a/b") is refused, as the file backend must. Nothing is durable, and memory is that of the objects.
package mem
