"""What a network costs: latency, arithmetic, bytes, and the conditions under which each figure holds."""
