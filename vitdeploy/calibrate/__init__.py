"""The parts that precisions share: the calibrated float32 graph, the search, the writers."""
