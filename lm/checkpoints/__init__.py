"""Model directories: read and written, with shapes and fingerprints checked."""
