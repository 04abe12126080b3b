"""qtoolkit: quantize pose networks for embedded devices and measure what it costs.

Importing this package imports nothing heavy; each command imports what it needs when it is called.
"""

__version__ = "0.1.0"
