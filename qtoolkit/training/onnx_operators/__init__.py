"""The ONNX operators in torch, one module per family; ``table`` joins them."""
