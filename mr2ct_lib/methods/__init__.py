"""The two papers: losses, networks, training, and the use of what was trained."""
