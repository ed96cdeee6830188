"""Own the run directory: its files, its checkpoints, and the classifier in them.

What is decided about a run is in `plan`. Read `run_dir.py` first.
"""
