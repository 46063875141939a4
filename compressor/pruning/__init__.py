"""Making a network smaller."""
