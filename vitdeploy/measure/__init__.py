"""Latency and accuracy, measured so that the numbers can be trusted. The stopwatch knows no model."""
