"""Queue requests until the model runs them, together or one by one.

Nothing here knows a model: only a function from inputs to outputs. Read `request_queue.py` first.
"""
