"""Serve an export: a server that speaks TensorFlow Serving's APIs, clients, and Kubernetes manifests.

Converting and checking are in `export`. A request goes from an API (`rest`) through `inference` and `batching` to a
version in `models`. Read `models/model.py` and `rest/rest_server.py` first.
"""
