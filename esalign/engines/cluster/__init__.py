"""Many engines as one: a backend that is made of backends, on any number of machines, by Ray."""
