"""Audio and images while they are generated."""
