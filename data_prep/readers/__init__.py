"""One format of files each, and what reading them shares."""
