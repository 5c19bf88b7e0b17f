"""The parts of a Triton model repository: configurations, engines, and programs for Triton's Python backend."""
