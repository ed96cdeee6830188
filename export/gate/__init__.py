"""Compare every artifact with the trained model, and refuse those that answer differently.

Report formats are in `files`. Read `run_gate.py` first.
"""
