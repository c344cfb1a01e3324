"""Adapt BLIP-2 of salesforce-lavis."""
