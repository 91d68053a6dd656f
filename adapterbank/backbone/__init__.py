"""The frozen AST, its checkpoints and its front end."""
