"""The same training steps in PyTorch, to measure beside."""
