"""What channels with a `History` rule need: proof that nothing is missing, repair where something is, and resume."""
