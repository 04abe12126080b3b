"""From a network's outputs to people, and from people to AP, agreement and parity."""
