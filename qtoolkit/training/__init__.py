"""Train and retrain networks, and run an ONNX graph as a torch module. Needs the extra ``train``."""
