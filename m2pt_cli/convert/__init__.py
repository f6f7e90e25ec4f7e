"""Import checkpoints that other code has written."""
