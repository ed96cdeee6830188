"""Clients of TensorFlow Serving's API, for `trainer serve` and for any other server of it.

Nothing of a server. Read `rest_client.py` first.
"""
