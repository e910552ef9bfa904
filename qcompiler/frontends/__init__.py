"""How a model becomes a graph."""
