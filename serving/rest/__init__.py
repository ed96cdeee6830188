"""Implement TensorFlow Serving's REST API, from the bytes of a request to the bytes of its answer.

Models in memory, JSON codecs, limits and metrics live here; nothing of Kubernetes, and no client. Read `rest_server.py`
first.
"""
