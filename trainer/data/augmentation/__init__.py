"""Random changes of training images, keyed by (seed, epoch, example), and pictures of what comes out."""
