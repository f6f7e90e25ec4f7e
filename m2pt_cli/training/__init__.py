"""Training: the trainer, its callbacks and a whole run."""
