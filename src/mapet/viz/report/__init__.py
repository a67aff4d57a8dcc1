"""Pages of one file: text, tables, code and figures, without a network or JavaScript."""
