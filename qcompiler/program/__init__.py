"""The integer program: its format, its check, and what each instruction computes."""
