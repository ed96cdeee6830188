"""What this machine can run, and what is wrong with each part: a verdict and a fix for everything that is looked at."""
