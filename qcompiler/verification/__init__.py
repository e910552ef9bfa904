"""Running the forms of a model against one another."""
