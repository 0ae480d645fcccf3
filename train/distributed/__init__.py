"""Multi-process training: process group and launcher."""
