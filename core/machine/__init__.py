"""Says what this machine has: memory, versions of libraries, and types that it multiplies in."""
