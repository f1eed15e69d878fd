"""Runs methods: the one loop over checkpoints, queries and examples."""
