"""The core: everything that one training run executes, and nothing that only a tool uses."""
