"""Export: a trained run to SavedModel, TFLite and ONNX, each compared with the model that was trained."""
