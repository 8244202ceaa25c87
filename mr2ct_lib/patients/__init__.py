"""Virtual patients and their scanners."""
