"""Hardware descriptors: schema, loader and the descriptors that ship with the compiler."""
