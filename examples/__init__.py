"""A model repository that works without a GPU, the script that trained it, and a demo that serves it."""
