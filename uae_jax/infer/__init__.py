"""Models at work: images -> captions, captions -> images, from hub folders."""
