// Package meter counts what is asked of a backend: calls of each method and the bytes that they move. A command tells it in the
// end; a test holds work to what it may cost.
//
//	m := meter.New(be)
//	...
//	fmt.Println(m.Calls(meter.Put), m.Bytes(meter.Put))
package meter
