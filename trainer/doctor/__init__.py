"""Check what this machine can run, and say what to do about the rest.

Each finding has a verdict and a fix. Read `finding.py` first.
"""
