"""The page to try a model with: its routes, and what they need of a model."""
