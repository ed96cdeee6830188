"""What all APIs, clients and manifests agree on: status codes, limits, addresses, and tensors by name.

Nothing here runs a model or needs TensorFlow. Read `status.py` first.
"""
