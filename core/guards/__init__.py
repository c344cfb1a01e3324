"""Holds a part to leaving what it is given to look at as it was."""
