"""A quantization compiler: a PyTorch model goes in, a verified integer deployment comes out."""
