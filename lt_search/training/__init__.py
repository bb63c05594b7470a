"""Training of one trial, stage by stage; independent of Ray."""
