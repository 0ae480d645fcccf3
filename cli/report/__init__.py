"""Pages and charts: the report of the demo, the report of a tokenizer."""
