"""What the configs of `configs/` share; none of them is a config of its own."""
