"""SQLite: the embedded engine of one machine."""
