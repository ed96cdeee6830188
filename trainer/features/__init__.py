"""Features once: what the frozen first layers of a classifier give is computed one time and kept."""
