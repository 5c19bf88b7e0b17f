"""What precisions share: the calibrated float32 graph, the search, the Q/DQ writers."""
