"""Make one step: forward and backward, the reduction, the update, and the state that it changes.

When a step is made is decided in `training`. Read `train_step.py` first.
"""
