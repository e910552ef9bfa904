"""The typed graph and the tools that read and rewrite it."""
