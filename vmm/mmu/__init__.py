"""Memory management: the walk of the guest's page tables, and the tables that the CPU really uses."""
