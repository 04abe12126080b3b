"""Calibration, post-training quantization, sensitivity analysis and the selection of layers."""
