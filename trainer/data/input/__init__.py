"""Feed batches: the tf.data pipeline, the cache of decoded pixels, and the plan of what is cached.

The order of examples is in `sampling`. Read `pipeline.py` first.
"""
