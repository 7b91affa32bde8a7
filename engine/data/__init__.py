"""Rows of data sets as questions and conversations, and their rendering into tokens."""
