"""`trainer launch --dry-run`: what a launch with the same arguments will do, worked out by the code that will do it."""
