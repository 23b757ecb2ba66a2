"""Text to records: readers, tokenizers, the hygiene of the paper, tables of sizes and lengths."""
