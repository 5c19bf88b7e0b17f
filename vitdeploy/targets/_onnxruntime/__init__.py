"""ONNX Runtime's devices, and how its kernels are read back."""
