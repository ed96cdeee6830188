"""Start runs: plan them, find the replicas, start workers, and train.

The command line is in `cli`. Read `plan_run.py` first, then `run_session.py`.
"""
