"""Say how a pruned weight lies in an ONNX file: each way to pack one, and what unpacks it."""
