"""Real data sets: a registry with addresses, sizes, checksums and licences, and a downloader."""
