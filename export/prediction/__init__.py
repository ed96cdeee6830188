"""Predict the classes of image files with a run, an export, an artifact file or a server.

Runtimes are in `runtime`, the server and its client in `serving`. Read `predict.py` first.
"""
