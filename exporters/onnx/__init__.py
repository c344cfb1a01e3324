"""Write ONNX files in which a pruned weight costs one bit."""
