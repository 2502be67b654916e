"""Wares: from a shop's raw files to trusted tables, and from those to a ranked list for every user."""
