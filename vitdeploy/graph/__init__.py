"""A Vision Transformer in ONNX: the loaded graph, its structure, and the dialects of targets. No torch."""
