"""A run on disk: who may write it, and what lies where."""
