"""Declare the commands. The only place that imports from everywhere.

No module here imports TensorFlow before a command needs it, and none computes anything. Read `app.py` first.
"""
