"""The folder that leaves the compiler."""
