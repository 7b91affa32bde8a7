"""What to ask, what is worth learning, in which order: driver code, CPU only."""
