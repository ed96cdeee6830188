"""Compare every artifact with the trained model, and refuse what answers differently.

The reports' formats are in `files`. Read `run_gate.py` first.
"""
