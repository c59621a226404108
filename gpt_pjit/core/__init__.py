"""The core: all that one training run executes, and nothing that only a tool uses."""
