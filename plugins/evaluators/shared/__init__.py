"""Holds what evaluators share: how they ask a model, what they refuse, and means with their standard errors."""
