"""Files, names and processes as the operating system, and the tools after us, take them."""
