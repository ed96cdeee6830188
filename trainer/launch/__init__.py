"""Start runs: plan them, find the replicas, start workers, and train.

The command line is in `cli`. Read `plan_run.py` first, then `start_run.py`.
"""
