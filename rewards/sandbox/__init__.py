"""Processes for hostile Python programs: namespaces, limits and filters around a fresh process a program. Linux."""
