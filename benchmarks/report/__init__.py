"""Writes pages and plots from the CSVs in results/."""
