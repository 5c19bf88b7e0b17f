"""Commands for a family: the artifacts of a model in several parts."""
