"""What only the notebooks, the tools and the command line need."""
