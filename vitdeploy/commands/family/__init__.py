"""What commands do with a family: the artifacts of a model in several parts."""
