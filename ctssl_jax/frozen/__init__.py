"""What frozen features of an encoder are worth, and what they take for alike."""
