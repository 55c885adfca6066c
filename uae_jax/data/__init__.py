"""Images and captions, from disk or drawn, as the batches of a run."""
