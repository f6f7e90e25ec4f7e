"""Evaluation: benchmarks, scores and the run that ties them together."""
