"""Generators that several tests draw from."""
