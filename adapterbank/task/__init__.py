"""A task: its description, its tensors, its head, how long its clips are, how it is composed from others."""
