"""What all engines share: prompts and token ids, loading, stop strings, checks of what they are given."""
