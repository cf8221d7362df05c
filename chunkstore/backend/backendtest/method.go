package backendtest

// Method names a method of backend.Backend.
type Method int

// The methods that faults and counters speak of.
const (
	Put Method = iota
	PutIfAbsent
	ReadAt
	List
	Stat
	Delete
	methods // their number
)

// String returns the method's name.
func (m Method) String() string {
	return [methods]string{"Put", "PutIfAbsent", "ReadAt", "List", "Stat", "Delete"}[m]
}
