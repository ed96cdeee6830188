"""Backbones, the classifier built on them, and the pure functions that train it."""
