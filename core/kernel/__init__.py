"""Multiply with weights that stay packed, on the CPU: by the library of kernels/ where it is, else by torch."""
