"""What several methods share: initial values, choosing blocks, bottlenecks, gates, placement."""
