"""Which examples a run takes, in which order, and where its epochs end: arithmetic alone, no input and no output."""
