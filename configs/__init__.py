"""One file for each main job; `get_config(preset)` returns its configuration."""
