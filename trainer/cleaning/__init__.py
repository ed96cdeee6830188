"""Find files on the disk that can be removed, and remove those that no process holds.

The rule of each kind of file is in `rules.py`, those of a run directory in `run_rules.py`; `limits.py` chooses by age
and size, `find.py` looks for places, and `clean.py` removes. Nothing here imports TensorFlow. Read `entry.py` first.
"""
