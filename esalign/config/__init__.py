"""Every schema of esalign, strict at every level, and how it is read."""
