"""Evaluation: benchmarks, their scores, and runs that can be resumed."""
