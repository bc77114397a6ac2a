"""Ask/tell optimisers that maximise: one algorithm a file, each an `esalign.protocols.Optimizer`."""
