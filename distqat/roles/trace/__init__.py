"""What a daemon did in the steps of a pipeline, as others ask for it."""
