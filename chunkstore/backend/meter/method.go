package meter

// Method names a method of backend.Backend.
type Method int

// The methods that are counted.
const (
	Put Method = iota
	PutIfAbsent
	ReadAt
	List
	Stat
	Delete
	// Methods is their number.
	Methods
)

// String returns the method's name.
func (m Method) String() string {
	return [Methods]string{"Put", "PutIfAbsent", "ReadAt", "List", "Stat", "Delete"}[m]
}
