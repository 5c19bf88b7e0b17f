"""Latency, energy and accuracy, and the reasons to doubt a measurement. The stopwatch knows no model."""
