"""Generate answers to questions about images."""
