"""Extends qcompiler by a pass, a target and a back end."""
