"""Open what runs: an artifact, the FP32 reference, a PyTorch module."""
