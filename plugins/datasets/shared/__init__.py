"""Holds what datasets share: reading tables of images, texts and classes, and saying which rows cannot be used."""
