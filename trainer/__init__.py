"""Training: from a folder of labelled images to a checked, resumable run directory."""

__version__ = "0.1.0"
