"""Serve an export: a server of TensorFlow Serving's APIs and the Open Inference Protocol, clients, and manifests.

Converting and checking are in `export`. A request goes from an API (`rest`, `rpc` or `open_inference`) through
`inference` and `batching` to a version in `models`. Read `models/model.py` and `rest/rest_server.py` first.
"""
