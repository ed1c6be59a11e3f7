"""The server's routes, a router for each concern."""
