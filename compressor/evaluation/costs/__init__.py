"""What single layers take on a machine: measured one by one, kept in tables, added up for networks."""
