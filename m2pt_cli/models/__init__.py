"""Bases and adapters."""
