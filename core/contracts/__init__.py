"""What a part is: the protocols of each kind, the records they exchange, and the hooks they are offered by."""
