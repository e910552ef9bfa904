"""One definition per operator: signature, type inference and evaluation."""
