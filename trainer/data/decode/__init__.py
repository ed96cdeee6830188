"""From the bytes of an image file to pixels: the one reading that training, evaluation, export and serving share."""
