"""What several methods share: initial values, checks of options, choosing blocks, bottlenecks, gates, placement."""
