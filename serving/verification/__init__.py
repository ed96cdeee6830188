"""Is the model that a server has loaded the one of this export, and is it fit for traffic?

Any server of TensorFlow Serving's APIs is asked: nothing here runs a model. Read `verify_server.py` first.
"""
