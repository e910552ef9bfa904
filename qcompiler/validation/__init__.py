"""Numbers: contracts of passes, equivalence of graphs, metrics."""
