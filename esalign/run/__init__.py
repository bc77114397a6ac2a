"""One run: search or distil, validate, keep the best, checkpoint, and judge the result on unseen problems."""
