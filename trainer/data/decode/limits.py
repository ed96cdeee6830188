"""The largest image that is decoded anywhere."""

# TensorFlow's JPEG decoder refuses images of 2**29 bytes and more (tensorflow/core/lib/jpeg/jpeg_mem.cc), and Pillow's
# guard against decompression bombs has the same limit.
MAX_IMAGE_PIXELS = 2**29 // 3
# Only the first frame of a GIF with more pixels in all its frames is stored, because TensorFlow decodes every frame.
MAX_GIF_PIXELS = 2**25
