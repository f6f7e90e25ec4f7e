"""Where a frozen LLaVA comes from: the catalogue of known bases and their loading."""
