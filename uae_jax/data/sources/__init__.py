"""Images that are kept somewhere, and their captions, by index."""
