"""Model directories: save and load, with checks of shapes and fingerprints."""
