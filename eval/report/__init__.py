"""The report of an audit: chapters as blocks, and their rendering to HTML and Markdown."""
