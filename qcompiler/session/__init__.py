"""The session: a model, its target and options, and the stages up to the artifact."""
