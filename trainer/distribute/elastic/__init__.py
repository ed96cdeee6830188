"""Jobs whose workers come and go: who may take part, who does, and how the others learn of it."""
