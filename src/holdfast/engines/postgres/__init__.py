"""PostgreSQL: one function call per operation."""
