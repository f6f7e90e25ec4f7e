"""The answer engine."""
