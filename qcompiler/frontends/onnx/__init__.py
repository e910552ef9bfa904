"""ONNX files as model sources: each operator becomes calls of torch, which the rules of torch turn into operators.

    file ─► read ─► walk the nodes ─► calls of torch (an fx graph) ─► the conversion of traced modules ─► graph

Values that are known when the file is read, such as weights, axes and sizes, are numbers of Python and NumPy; the walk
computes with them. All other values are traced.
"""
