"""Start the workers of a job on this machine and on others, watch them, and leave no process behind.

What workers compute does not belong here. Read `supervisor.py` first, then `guard.py`.
"""
