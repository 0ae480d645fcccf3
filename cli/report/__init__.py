"""HTML reports and charts: the demo report and the tokenizer report."""
