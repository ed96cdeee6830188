"""Run the loop: steps, and the actions between them.

What one step computes is in `step`; who takes part is in `launch`. Read `train.py` first.
"""
