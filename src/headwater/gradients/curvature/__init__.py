"""Curvature: what a query's gradient is multiplied by, P in the one equation."""
