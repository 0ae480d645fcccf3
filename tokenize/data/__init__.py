"""Media and datasets on disk: decoding, corpora, shards, codes files."""
