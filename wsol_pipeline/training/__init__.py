"""One training: configuration, loop, checkpoints, the finished model, and what a worker runs on Ray."""
