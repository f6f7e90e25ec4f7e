"""Data sets: sources, samples, chat templates, tokenization and batches."""
