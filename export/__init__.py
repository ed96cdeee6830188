"""Export a trained run to SavedModel, TFLite and ONNX, each compared with the model that was trained.

Training does not belong here, and serving imports from here. Read `pipeline/export_run.py` first.
"""
