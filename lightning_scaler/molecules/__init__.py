"""The embedded default: a real data set, its generator, a datamodule and an example model."""
