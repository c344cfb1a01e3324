"""Pages and drawings of what was measured."""
