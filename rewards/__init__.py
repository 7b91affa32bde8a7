"""Plain functions from text to a score; no Ray, no torch, nothing of the other floors."""
