"""Training of one trial, stage by stage. Knows no Ray."""
