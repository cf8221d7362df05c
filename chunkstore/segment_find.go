package chunkstore

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// find returns the number of the entry with key k, when all frames that it takes to know are present.
func (s *segment) find(k *key) (int, bool) {
	i, ok, missing := s.probe(k)
	return i, ok && missing < 0
}

// probe is find; missing is the frame that it takes to know and that is not present, -1 when there is none.
func (s *segment) probe(k *key) (i int, ok bool, missing int) {
	if s.count == 0 || bytes.Compare(k[:], s.last[:]) > 0 || bytes.Compare(k[:], s.fence[:keyLen]) < 0 {
		return 0, false, -1
	}
	f := s.fenceFrame(k)
	if frame := s.entryFrame(f * frameEntries); !s.present(frame) {
		return 0, false, frame
	}
	lo, hi := f*frameEntries, min((f+1)*frameEntries, s.count)
	after := s.last[:]
	if f+1 < s.entryFrames() {
		after = s.fenceAt(f + 1)
	}
	i, ok = s.findIn(k, lo, hi, binary.BigEndian.Uint64(s.fenceAt(f)), binary.BigEndian.Uint64(after))
	return i, ok, -1
}

// fenceFrame returns the last frame of entries whose first key is not above k; the first one is not. Keys are uniform, so a guess
// is rarely wrong by more than one.
func (s *segment) fenceFrame(k *key) int {
	n := s.entryFrames()
	lo, hi := 0, n // the frame is in [lo, hi)
	if first, last, want := binary.BigEndian.Uint64(s.fence), binary.BigEndian.Uint64(s.last[:]), binary.BigEndian.Uint64(k[:]); last > first && n > 2 {
		h, l := bits.Mul64(min(want, last)-first, uint64(n))
		guess := n - 1
		if h < last-first {
			q, _ := bits.Div64(h, l, last-first)
			guess = min(int(q), n-1)
		}
		if bytes.Compare(s.fenceAt(guess), k[:]) <= 0 {
			lo = guess
			if p := guess + 2; p < n && bytes.Compare(s.fenceAt(p), k[:]) > 0 {
				hi = p
			}
		} else {
			hi = guess
			if p := guess - 1; bytes.Compare(s.fenceAt(p), k[:]) <= 0 {
				lo = p
			}
		}
	}
	for hi-lo > 1 {
		if mid := int(uint(lo+hi) >> 1); bytes.Compare(s.fenceAt(mid), k[:]) <= 0 {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// findIn looks for k among the entries [lo, hi), whose keys lie between those that begin with loVal and hiVal. Keys are uniform, so
// their values say where to look: a few interpolations, then bisection over what is left.
func (s *segment) findIn(k *key, lo, hi int, loVal, hiVal uint64) (int, bool) {
	want := binary.BigEndian.Uint64(k[:])
	if want < loVal || want > hiVal {
		return 0, false
	}
	for probe := 0; probe < 4 && hi-lo > 16; probe++ {
		h, l := bits.Mul64(want-loVal, uint64(hi-lo))
		if h >= hiVal-loVal {
			break
		}
		q, _ := bits.Div64(h, l, hiVal-loVal)
		// Step a little to either side, so that the true place is likely between two probes.
		at := lo + min(int(q), hi-lo-1)
		v := binary.BigEndian.Uint64(s.keyAt(at))
		slack := 1 << ((bits.Len(uint(hi-lo)) + 2) / 2)
		if v < want {
			lo, loVal = at+1, v
			if p := at + slack; p < hi {
				if v := binary.BigEndian.Uint64(s.keyAt(p)); v > want {
					hi, hiVal = p, v
				} else if v < want {
					lo, loVal = p+1, v
				}
			}
		} else if v > want {
			hi, hiVal = at, v
			if p := at - slack; p >= lo {
				if v := binary.BigEndian.Uint64(s.keyAt(p)); v < want {
					lo, loVal = p+1, v
				} else if v > want {
					hi, hiVal = p, v
				}
			}
		} else {
			lo = firstEqual(s, lo, at, want)
			break
		}
		if want < loVal || want > hiVal {
			break
		}
	}
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch bytes.Compare(s.keyAt(mid), k[:]) {
		case 0:
			return mid, true
		case -1:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, false
}

// firstEqual walks down from at while entries have the same first 8 bytes; keys that share them are all but unheard of.
func firstEqual(s *segment, lo, at int, want uint64) int {
	for at > lo && binary.BigEndian.Uint64(s.keyAt(at-1)) == want {
		at--
	}
	return at
}
