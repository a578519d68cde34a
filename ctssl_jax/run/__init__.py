"""What a run is besides its training: its folder, what opens it, what it records."""
