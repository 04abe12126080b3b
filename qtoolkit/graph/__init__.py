"""The ONNX file: reading it, changing it one rule at a time, and naming what in it is a layer."""
