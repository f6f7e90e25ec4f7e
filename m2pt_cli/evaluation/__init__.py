"""Evaluation: benchmarks, their scores, and runs that never lose an answer."""
