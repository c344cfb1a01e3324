"""Adapt the BLIP of salesforce-lavis that reads a sentence on two images."""
