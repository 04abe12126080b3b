"""What a device gets: one file with the network and all that is needed to find people with it."""
