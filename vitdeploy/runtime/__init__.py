"""Open models to run them: an artifact, the FP32 reference, a PyTorch module."""
