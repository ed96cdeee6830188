"""Status codes, limits, addresses and tensors by name, on which all APIs, clients and manifests agree.

Nothing here runs a model or needs TensorFlow. Read `status.py` first.
"""
