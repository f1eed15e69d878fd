"""Gradients of single examples: which weights, which loss, and their inner products."""
