"""The compiler's integer arithmetic against programs that others wrote."""
