"""The integer program: format, emitter and executor."""
