"""One file for each kind of input that is fuzzed."""
