"""TensorRT and TensorRT-RTX: build, read, audit, open and time engines."""
