"""TensorFlow Serving's REST API, from the bytes of a request to those of its answer.

Nothing of the models themselves, and no client. Read `rest_server.py` first.
"""
