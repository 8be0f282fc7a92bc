"""Policy without I/O: connection states, who dials and when, what a peer announced. `now` is an argument, randomness is given."""
