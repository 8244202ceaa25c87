"""Scans as arrays with a place in the patient: files in and out, intensities, registration, and how a scan becomes slices."""
