"""Worlds: where protocols run. `threads` blocks, `tasks` awaits asyncio; the protocols are the same."""
