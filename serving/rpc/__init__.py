"""TensorFlow Serving's gRPC API, from the bytes of a call to those of its answer, with health checks and reflection.

Nothing of the models themselves, and no client. Read `rpc_server.py` first.
"""
