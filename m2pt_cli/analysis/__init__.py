"""Looking into a model: parameter counts, attention."""
