"""A fenced quorum of independent Redis servers."""
