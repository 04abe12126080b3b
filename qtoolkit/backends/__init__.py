"""Runtimes behind one small interface: open, infer, close."""
