"""Measure latency, energy and accuracy, and find the reasons to doubt a measurement. The stopwatch knows no model."""
