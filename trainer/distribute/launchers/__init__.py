"""Start the workers of a job on this machine and on others, watch over them, and leave none of them behind.

What workers compute does not belong here. Read `supervisor.py` first, then `guard.py`.
"""
