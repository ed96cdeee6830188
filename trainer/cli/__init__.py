"""The `trainer` command line; nothing here imports TensorFlow before a command needs it."""
