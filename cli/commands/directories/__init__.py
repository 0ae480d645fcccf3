"""Commands on directories of models and tokenizers: say what one is, seal one after an edit."""
