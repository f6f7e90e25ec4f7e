"""The demo data set: drawn scenes, and questions about them."""
