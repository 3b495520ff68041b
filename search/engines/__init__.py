"""Engines: what finds the nearest windows. search/engines/base.py says what one does."""
