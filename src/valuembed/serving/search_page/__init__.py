"""The page to search an index with, and its map: markup, style and scripts, put together into one file."""
