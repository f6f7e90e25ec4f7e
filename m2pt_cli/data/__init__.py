"""Samples, their sources, chat templates and batches."""
