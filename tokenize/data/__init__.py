"""Media and datasets on disk: decoding, corpora, shards, files of codes."""
