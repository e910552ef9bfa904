"""TensorFlow Lite files: the integer program as operators of 8 bits."""
