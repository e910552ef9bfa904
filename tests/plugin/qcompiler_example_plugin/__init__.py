"""Extends qcompiler by a pass and a target."""
