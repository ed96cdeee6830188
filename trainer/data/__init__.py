"""Images on disk to batches on devices: sources, records, order, preprocessing, pipeline."""
