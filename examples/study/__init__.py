"""Generated data, and the study on it."""
