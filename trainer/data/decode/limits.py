"""How large an image may be, wherever one is decoded."""

# TensorFlow's JPEG decoder refuses pictures of 2**29 bytes and more (tensorflow/core/lib/jpeg/jpeg_mem.cc), and
# Pillow's guard against decompression bombs strikes at the same figure.
MAX_IMAGE_PIXELS = 2**29 // 3
# A GIF with more in all its frames is stored as its first one alone: to read that, training would unpack them all.
MAX_GIF_PIXELS = 2**25
