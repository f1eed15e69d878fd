"""Naive doubles: the plainest way to the same numbers."""
