"""Descriptions of families of models."""
