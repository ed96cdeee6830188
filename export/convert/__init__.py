"""Convert the classifier to each format.

Whether the result is right is judged in `gate`. Read `inference_model.py` first, then `conversion.py`.
"""
