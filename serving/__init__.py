"""Serve an export: a local server that speaks TensorFlow Serving's API, a client, and Kubernetes manifests.

Converting and checking are in `export`. Read `rest/rest_server.py` first.
"""
