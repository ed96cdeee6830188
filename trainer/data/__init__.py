"""Bring images from disk to batches on devices.

Anything that trains does not belong here. Read `sampling/order.py` first, which alone knows the next example, then
`input/pipeline.py`.
"""
