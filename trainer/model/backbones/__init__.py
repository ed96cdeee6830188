"""List the backbones and build each one, from keras.applications, keras-hub, a saved model or our own code.

Heads and weight files do not belong here. Read `registry.py` first.
"""
