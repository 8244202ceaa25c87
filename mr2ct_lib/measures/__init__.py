"""Measures of synthetic scans, and statistics over patients and seeds."""
