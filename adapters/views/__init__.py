"""Take out the parts of a model that can be exported by themselves."""
