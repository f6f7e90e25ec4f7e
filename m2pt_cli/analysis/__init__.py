"""Analysis of a model's attention, and figures of attention and scores."""
