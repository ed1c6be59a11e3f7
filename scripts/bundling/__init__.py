"""Parts of train_bundled.py: text, rows, lessons, training."""
