"""Attribution methods, each a short recipe for the one loop."""
