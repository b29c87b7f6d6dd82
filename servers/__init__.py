"""Push and pull: a server whose files change, and clients that must know."""
