"""What a Vision Transformer looks like in ONNX: the loaded graph, its structure, the dialects of targets. No torch."""
