"""Scans as arrays with a place in the patient: files, intensities, registration, and how a scan becomes slices."""
