"""Data sets of the study: generated images and converters of published photographs."""
